"""One equation for every FFN:

    h = φ(x W_in + b_in) [⊙ x W_up]        hidden units, in blocks: one block an expert, or a node of a tree
    g = route(x)                           one gate a block: all ones (dense), the top k (MoE), a path (tree)
    y = (g ⊙ h) W_out + g · b_out

This is the masked form: it computes every block and closes those that the gate closes. At total-matched widths
it costs exactly the dense layer, has static shapes, and is the reference for any faster kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.model.architecture import FeedForward, Parameters

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "none": lambda x: x,
}


def alike(function: Callable[[Tensor], Tensor], x: Tensor, models: int = 0) -> Tensor:
    """The function of x with the same rounding however many models there are along that axis.

    Vector loops round differently in the few elements that do not fill a register; where one model's elements
    do not end with a full one, each model gets a loop of its own.
    """
    if x.shape[models + 1 :].numel() % 64 == 0:
        return function(x)
    return torch.stack([function(one) for one in x.unbind(models)], models)


def hidden_units(
    ffn: FeedForward, p: Parameters, name: str, x: Float[Tensor, "M N D"]
) -> Float[Tensor, "M N W"]:
    """h: every hidden unit of every block, before any gate. Trees with φ after a sum have their responses bare."""
    activation = ACTIVATIONS[ffn.activation]
    if ffn.gated:
        return alike(activation, x @ p[name + "w_in"]) * (x @ p[name + "w_up"])
    before = torch.baddbmm(p[name + "b_in"][:, None], x, p[name + "w_in"])
    if ffn.nonlinearity == "node":
        return alike(activation, before)
    dense, trees = before.tensor_split([ffn.always_on], dim=-1)
    return torch.cat([alike(activation, dense.contiguous()), trees], dim=-1) if ffn.always_on else trees


def combine(
    ffn: FeedForward,
    p: Parameters,
    name: str,
    hidden: Float[Tensor, "M N W"],
    gates: Float[Tensor, "M N E"] | None,
) -> Float[Tensor, "M N D"]:
    """y from the hidden units and the gates; `None` is all ones."""
    if gates is None:
        if not ffn.output_bias:
            return hidden @ p[name + "w_out"]
        return torch.baddbmm(p[name + "b_out"], hidden, p[name + "w_out"])
    opened: Tensor = (hidden.unflatten(-1, (ffn.blocks, ffn.expert_width)) * gates[..., None]).flatten(-2)
    if ffn.nonlinearity != "node":
        return after_the_sum(ffn, opened, p[name + "w_out"])
    if not ffn.output_bias:
        return opened @ p[name + "w_out"]
    return torch.baddbmm(gates @ p[name + "b_out"], opened, p[name + "w_out"])


def after_the_sum(
    ffn: FeedForward, opened: Float[Tensor, "M N W"], w_out: Float[Tensor, "M W D"]
) -> Float[Tensor, "M N D"]:
    """y = φ(Σ a_n w_out,n) over the nodes on the paths of all trees, or the sum of every tree's own φ(Σ …).

    Units that are always on have had their φ, and join after it.
    """
    activation = ACTIVATIONS[ffn.activation]
    dense, responses = opened.tensor_split([ffn.always_on], dim=-1)
    w_dense, w_trees = w_out.tensor_split([ffn.always_on], dim=1)
    if ffn.nonlinearity == "sum":
        out = alike(activation, responses @ w_trees)
    else:  # (M, P, N, D)
        each = responses.unflatten(-1, (ffn.trees, ffn.nodes)).transpose(1, 2)
        out = alike(activation, each @ w_trees.unflatten(1, (ffn.trees, ffn.nodes))).sum(1)
    return out + dense @ w_dense if ffn.always_on else out
