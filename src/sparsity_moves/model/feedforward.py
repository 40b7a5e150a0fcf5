"""One equation for every FFN:

    h = φ(x W_in + b_in) [⊙ x W_up]        hidden units, in blocks: one block an expert
    g = route(x)                           one gate a block: all ones (dense), the top k (MoE)
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
    """h: every hidden unit of every expert, before any gate."""
    activation = ACTIVATIONS[ffn.activation]
    if ffn.gated:
        return alike(activation, x @ p[name + "w_in"]) * (x @ p[name + "w_up"])
    return alike(activation, torch.baddbmm(p[name + "b_in"][:, None], x, p[name + "w_in"]))


def combine(
    ffn: FeedForward,
    p: Parameters,
    name: str,
    hidden: Float[Tensor, "M N W"],
    gates: Float[Tensor, "M N E"] | None,
) -> Float[Tensor, "M N D"]:
    """y from the hidden units and the gates; `None` is all ones."""
    if gates is None:
        if not ffn.bias:
            return hidden @ p[name + "w_out"]
        return torch.baddbmm(p[name + "b_out"], hidden, p[name + "w_out"])
    opened: Tensor = (hidden.unflatten(-1, (ffn.experts, ffn.expert_width)) * gates[..., None]).flatten(-2)
    if not ffn.bias:
        return opened @ p[name + "w_out"]
    return torch.baddbmm(gates @ p[name + "b_out"], opened, p[name + "w_out"])
