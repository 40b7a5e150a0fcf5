"""Trees in the place of every MLP of a GPT-NeoX, OPT, Llama or GPT-2 model.

GPT-NeoX, Llama and GPT-2 have an MLP in each layer. OPT has fc1, activation and fc2 in the layer itself: there trees
take fc1's place, and the other two do nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsity_moves.errors import UserError
from sparsity_moves.language.module import Trees
from sparsity_moves.model import FeedForward


class Plain(NamedTuple):
    """A plain MLP's weights, a unit's side by side."""

    w_in: Tensor
    """(H, D)"""
    b_in: Tensor | None
    w_out: Tensor
    """(H, D)"""
    b_out: Tensor | None


class Place(NamedTuple):
    """Where an MLP is, and what it is."""

    parent: nn.Module
    name: str
    """Under which the parent knows it, or OPT's fc1."""
    plain: Plain | None
    """None of a GLU."""
    d_model: int
    probability: float = 0.0
    """Of dropout, where it is the MLP's own."""


def _place(module: nn.Module) -> Place | None:
    """The MLP that is this module's own, if it is a layer of a model that we know."""
    kind, given = type(module).__name__, module.__dict__["_modules"]
    if kind == "OPTDecoderLayer" and isinstance(given["fc1"], nn.Linear):
        first, second = given["fc1"], given["fc2"]
        plain = Plain(first.weight, first.bias, second.weight.T, second.bias)
        return Place(module, "fc1", plain, first.in_features)
    mlp = given.get("mlp")
    match type(mlp).__name__:
        case "GPTNeoXMLP":
            first, second = mlp.dense_h_to_4h, mlp.dense_4h_to_h
            plain = Plain(first.weight, first.bias, second.weight.T, second.bias)
            return Place(module, "mlp", plain, first.in_features)
        case "GPT2MLP":  # whose weights act from the right
            first, second = mlp.c_fc, mlp.c_proj
            plain = Plain(first.weight.T, first.bias, second.weight, second.bias)
            return Place(module, "mlp", plain, first.weight.shape[0], mlp.dropout.p)
        case "LlamaMLP":
            return Place(module, "mlp", None, mlp.gate_proj.in_features)
    return None


def mlps(model: nn.Module) -> dict[str, Place]:
    """Every MLP that trees can take the place of, by its layer's name. Raises `UserError` where there is none."""
    found = {name: place for name, module in model.named_modules() if (place := _place(module))}
    if not found:
        raise UserError(
            f"no MLP of a GPT-NeoX, OPT, Llama or GPT-2 model is in {type(model).__name__}: nothing to replace"
        )
    return found


def with_trees(model: nn.Module, ffn: FeedForward, *, convert: bool = False) -> nn.Module:
    """Put trees in the place of every MLP, in the model itself, which is given back.

    From scratch unless `convert`: then unit i of an MLP becomes unit i of the trees, with its weights, and its
    output's bias stays; units that are too many are left out, those that are too few start from scratch. A tree opens
    only some of the units, so a converted model computes something else, and wants to be trained on. (How the paper
    converts is not known.)

    φ is that of `ffn`, whatever the model's was.

    Raises `UserError` for a model without such an MLP, and where a GLU, which has no plain units, is to be converted.
    """
    places = mlps(model)
    for layer, place in places.items():
        if convert and place.plain is None:
            raise UserError(
                f"the MLP of {layer} is a GLU, which has no plain units: its trees start from scratch"
            )
    for place in places.values():
        kept = place.plain if convert else None
        trees = Trees(place.d_model, ffn, bias=kept is not None and kept.b_out is not None)
        weight = next(place.parent.parameters())
        trees.to(weight.device, weight.dtype)
        if kept is not None:
            _convert(trees, kept)
        new: nn.Module = trees
        if place.probability:
            new = nn.Sequential(trees, nn.Dropout(place.probability))
        setattr(place.parent, place.name, new.train(place.parent.training))
        if place.name == "fc1":  # OPT
            place.parent.fc2 = nn.Identity()
            place.parent.activation_fn = nn.Identity()
    return model


@torch.no_grad()
def _convert(trees: Trees, plain: Plain) -> None:
    units = min(len(plain.w_in), len(trees.w_in))
    trees.w_in[:units] = plain.w_in[:units]
    trees.w_out[:units] = plain.w_out[:units]
    if plain.b_in is not None:
        trees.b_in[:units] = plain.b_in[:units]
    else:
        trees.b_in[:units] = 0
    if trees.bias is not None and plain.b_out is not None:
        trees.bias.copy_(plain.b_out)
