"""The FFN on a CPU, by hand: rows in groups, each group through its own block.

The reference is the masked form (`model.feedforward`), which computes all E blocks and closes E - k of them. With
tokens sorted by expert, a token meets its k blocks only: k/E of the products and of the hidden units, forward and
backward, at the price of sorting the tokens and of smaller products. A dense layer is one group a model. Each
group's loops and products are calls of their own, so the rounding does not depend on what else is in the fleet.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.model import FeedForward, Parameters, Routing
from sparsity_moves.model.attention import rows


def value_and_slope(activation: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """φ and its derivative, which share their costly part. The value may be in x's place."""
    match activation:
        case "silu":
            gate = x.sigmoid()
            value = x.mul_(gate)
            return value, torch.addcmul(value, value, gate, value=-1).add_(gate)
        case "gelu":
            below = torch.erf(x / math.sqrt(2)).add_(1).mul_(0.5)
            return x * below, below + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        case "relu":
            value = x.relu()
            return value, value.sign()
    return x, torch.ones_like(x)


def each(weight: Tensor | None, groups: int) -> list[Any]:
    """Every model's every block's, in the order of the groups."""
    if weight is None:
        return [None] * groups
    return [block for blocks in weight.unbind() for block in blocks.unbind()]


class _Blocks(torch.autograd.Function):
    """φ(x W_in + b_in) [⊙ x W_up] W_out + b_out, group by group; a group's blocks may be strided.

    By hand, so that a group's hidden units are worked through while they are in the cache, and the activation's
    derivative comes from what its value cost.
    """

    @staticmethod
    def forward(ctx: Any, activation: str, sizes: list[int], x: Tensor, *weights: Tensor | None) -> Tensor:
        out = torch.empty_like(x)
        ctx.sizes, ctx.hidden = sizes, []
        given = (x.split(sizes), out.split(sizes), *(each(weight, len(sizes)) for weight in weights))
        for x_, out_, w_in, b_in, w_up, w_out, b_out in zip(*given, strict=True):
            before = x_ @ w_in if b_in is None else torch.addmm(b_in, x_, w_in)
            value, slope = value_and_slope(activation, before)
            factor = None if w_up is None else x_ @ w_up
            hidden = value if factor is None else value * factor
            if b_out is None:
                torch.mm(hidden, w_out, out=out_)
            else:
                torch.addmm(b_out, hidden, w_out, out=out_)
            ctx.hidden.append((value, slope, factor, hidden))
        ctx.save_for_backward(x, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        upstream, d_x = gradients[0].contiguous(), torch.empty_like(x)
        d_weights = [None if w is None else torch.empty_like(w) for w in weights]  # a block's strides stay
        given = [x.split(ctx.sizes), d_x.split(ctx.sizes), upstream.split(ctx.sizes), ctx.hidden]
        given += [each(weight, len(ctx.sizes)) for weight in (*weights, *d_weights)]
        for x_, d_x_, d_out, kept, w_in, _, w_up, w_out, _, *d in zip(*given, strict=True):
            (value, slope, factor, hidden), (d_w_in, d_b_in, d_w_up, d_w_out, d_b_out) = kept, d
            torch.mm(hidden.T, d_out, out=d_w_out)
            d_value = d_out @ w_out.T
            if factor is not None:
                d_factor = d_value * value
                torch.mm(x_.T, d_factor, out=d_w_up)
                d_value *= factor
            d_before = d_value.mul_(slope)
            torch.mm(x_.T, d_before, out=d_w_in)
            torch.mm(d_before, w_in.T, out=d_x_)
            if factor is not None:
                d_x_.addmm_(d_factor, w_up.T)
            if d_b_in is not None:
                torch.sum(d_before, 0, out=d_b_in)
            if d_b_out is not None:
                torch.sum(d_out, 0, out=d_b_out)
        return None, None, d_x, *d_weights


def blocks(
    ffn: FeedForward, p: Parameters, name: str, x: Float[Tensor, "M N D"], sizes: list[int]
) -> Float[Tensor, "M N D"]:
    """Rows of every model in E groups, one a block and `sizes` long, through their blocks."""
    models, shape = len(x), (len(x), -1, ffn.experts, ffn.expert_width)

    def columns(part: str) -> Tensor:  # (M, D, E·w) as (M, E, D, w)
        return p[name + part].view(shape).transpose(1, 2)

    weights = (
        columns("w_in"),
        p[name + "b_in"].view(models, ffn.experts, -1) if ffn.bias else None,
        columns("w_up") if ffn.gated else None,
        p[name + "w_out"].view(models, ffn.experts, ffn.expert_width, -1),
        p[name + "b_out"] if ffn.bias else None,
    )
    out: Tensor = _Blocks.apply(ffn.activation, sizes, x.flatten(0, 1), *weights)  # type: ignore[no-untyped-call]
    return out.view_as(x)


def open_experts(
    ffn: FeedForward,
    p: Parameters,
    name: str,
    x: Float[Tensor, "M N D"],
    routing: Routing | None,
    added: bool = False,
) -> Float[Tensor, "M N D"]:
    """The FFN's output from the open experts alone, and x too where it is `added`; equal to the masked form up to
    rounding.

    `routing` is of the N tokens, (M, B, R, E) with N = B·R; None where there are no experts.
    """
    if added:
        return x + open_experts(ffn, p, name, x, routing)
    if routing is None:
        return blocks(ffn, p, name, x, [x.shape[1]] * len(x))
    gates, chosen = routing.gates.flatten(1, 2), routing.chosen.flatten(1, 2)
    models, tokens, k = *x.shape[:2], ffn.top_k
    expert = chosen.topk(k, dim=-1).indices  # (M, N, k)
    order = expert.flatten(1).argsort(dim=1, stable=True)
    given = rows(x, (order // k)[:, None])[:, 0]
    sorted_out = blocks(ffn, p, name, given, chosen.sum(1).flatten().long().tolist())
    out = rows(sorted_out, order.argsort(dim=1)[:, None])[:, 0].view(models, tokens, k, x.shape[2])
    if ffn.plain_gates:
        return out[:, :, 0]
    return (out * gates.gather(-1, expert)[..., None]).sum(2)
