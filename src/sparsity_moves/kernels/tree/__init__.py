"""Trees computed only where tokens go: one layer of any size, its kernels, and what physics allows them.

`tree_layer` is the FFN's equation for one layer of many tokens, as language models have it, with the weights of a
node side by side: W_in is (W, D), as `torch.nn.Linear` keeps it. `masked` is its reference, the masked form of
`model.feedforward`, which computes every node. Fleets of small models use the latter: at their widths it is faster.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_moves.kernels.tree.cpu import grouped, walk
from sparsity_moves.kernels.tree.floor import Floor, floor
from sparsity_moves.model import FeedForward
from sparsity_moves.model.feedforward import ACTIVATIONS, combine, hidden_units
from sparsity_moves.model.tree import by_path

FEW = 128
"""Tokens up to which a CPU takes each one's path alone; with more it pays to bring tokens of a subtree together."""


def masked(
    ffn: FeedForward,
    x: Float[Tensor, "N D"],
    w_in: Float[Tensor, "W D"],
    b_in: Float[Tensor, " W"],
    w_out: Float[Tensor, "W D"],
    *,
    alive: Bool[Tensor, "P N"] | None = None,
) -> Float[Tensor, "N D"]:
    """The reference: every node computed, and those off the path closed; `alive` are those left of a pruned layer."""
    p = {"w_in": w_in.T[None], "b_in": b_in[None], "w_out": w_out[None]}
    hidden = hidden_units(ffn, p, "", x[None])
    gates = by_path(ffn, hidden[:, :, None], None if alive is None else alive[None]).gates[:, :, 0]
    return combine(ffn, p, "", hidden, gates)[0]


def forest(
    x: Float[Tensor, "N D"],
    w_in: Float[Tensor, "W D"],
    b_in: Float[Tensor, " W"],
    w_out: Float[Tensor, "W D"],
    depth: int,
    activation: str,
) -> Float[Tensor, "N D"]:
    """Σ φ(a_n) w_out,n over the paths of all trees, by the kernel for the device and the number of tokens."""
    if not len(x):
        return (x @ w_in.T + b_in) @ w_out  # nothing, which still has gradients
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # as a linear layer would: its numbers are cast, forward and backward
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return forest(x.to(dtype), w_in.to(dtype), b_in.to(dtype), w_out.to(dtype), depth, activation)
    if x.is_cuda:
        from sparsity_moves.kernels.triton.tree import forest as on_gpu

        return on_gpu(x, w_in, b_in, w_out, depth, activation)
    if x.dtype in (torch.bfloat16, torch.float16):  # branches are decided in fp32, and so a CPU computes all
        return forest(x.float(), w_in.float(), b_in.float(), w_out.float(), depth, activation).to(x.dtype)
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (x, w_in, b_in, w_out))
    if learns or len(x) > FEW:
        return grouped(x, w_in, b_in, w_out, depth, activation)
    return walk(x, w_in, b_in, w_out, depth, activation)


def tree_layer(
    ffn: FeedForward,
    x: Float[Tensor, "N D"],
    w_in: Float[Tensor, "W D"],
    b_in: Float[Tensor, " W"],
    w_out: Float[Tensor, "W D"],
) -> Float[Tensor, "N D"]:
    """One layer's output for N tokens; forward and backward equal `masked` up to rounding.

    Two back ends can part ways where a response is zero up to rounding; where it is exactly zero all go left.
    """
    phi, on = ACTIVATIONS[ffn.activation], ffn.always_on
    weights = w_in[on:], b_in[on:], w_out[on:]
    match ffn.nonlinearity:
        case "node":
            out = forest(x, *weights, ffn.tree_depth, ffn.activation)
        case "sum":
            out = phi(forest(x, *weights, ffn.tree_depth, "none"))
        case "tree":
            own = zip(*(w.split(ffn.nodes) for w in weights), strict=True)
            out = torch.stack([phi(forest(x, i, b, o, ffn.tree_depth, "none")) for i, b, o in own]).sum(0)
    if on:
        out = out + phi(torch.addmm(b_in[:on], x, w_in[:on].T)) @ w_out[:on]
    return out


__all__ = ["FEW", "Floor", "floor", "forest", "grouped", "masked", "tree_layer", "walk"]
