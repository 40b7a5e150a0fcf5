"""A mixture of experts on a CPU: tokens sorted by expert, one product an expert.

The reference is the masked form (`model.feedforward`), which computes all E blocks and closes E - k of them. Here
a token meets its k blocks only: k/E of the products and of the hidden units, forward and backward, at the price
of sorting the tokens and of smaller products. Each model's and each expert's product is a call of its own, so the
rounding does not depend on what else is in the fleet.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.model import FeedForward, Parameters, Routing
from sparsity_moves.model.attention import rows
from sparsity_moves.model.feedforward import activate

Segments = list[tuple[int, int, int, int]]
"""(model, expert, first row, end row) of every group that has rows."""


class _GroupedProduct(torch.autograd.Function):
    """x[m, rows of e] @ weight[m, e] + bias[m, e]. `weight` may be strided: blocks of columns of one matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments) -> Tensor:
        out = x.new_empty(*x.shape[:2], weight.shape[-1])
        for m, e, start, end in segments:
            if bias is None:
                torch.mm(x[m, start:end], weight[m, e], out=out[m, start:end])
            else:
                torch.addmm(bias[m, e], x[m, start:end], weight[m, e], out=out[m, start:end])
        ctx.save_for_backward(x, weight)
        ctx.segments, ctx.biased = segments, bias is not None
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (upstream,) = gradients
        upstream = upstream.contiguous()
        d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)  # which keeps the strides of its blocks
        d_bias = x.new_zeros(*weight.shape[:2], weight.shape[-1]) if ctx.biased else None
        for m, e, start, end in ctx.segments:
            torch.mm(upstream[m, start:end], weight[m, e].T, out=d_x[m, start:end])
            torch.mm(x[m, start:end].T, upstream[m, start:end], out=d_weight[m, e])
            if d_bias is not None:
                torch.sum(upstream[m, start:end], dim=0, out=d_bias[m, e])
        return d_x, d_weight, d_bias, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments) -> Tensor:
    """Each group of rows by its own matrix: (M, N, I) by (M, E, I, O) is (M, N, O)."""
    out: Tensor = _GroupedProduct.apply(x, weight, bias, segments)  # type: ignore[no-untyped-call]
    return out


def open_experts(
    ffn: FeedForward, p: Parameters, name: str, x: Float[Tensor, "M N D"], routing: Routing | None
) -> Float[Tensor, "M N D"]:
    """The FFN's output from the open experts alone; equal to the masked form up to rounding.

    `routing` is of the N tokens, (M, B, R, E) with N = B·R.
    """
    assert routing is not None, "without a router every block is open"
    gates, chosen = routing.gates.flatten(1, 2), routing.chosen.flatten(1, 2)
    models, tokens, k = *x.shape[:2], ffn.top_k
    expert = chosen.topk(k, dim=-1).indices  # (M, N, k)
    order = expert.flatten(1).argsort(dim=1, stable=True)
    counts = chosen.sum(1).long().tolist()
    segments: Segments = []
    for m, of_model in enumerate(counts):
        start = 0
        for e, number in enumerate(of_model):
            if number:
                segments.append((m, e, start, start + number))
            start += number

    def columns(weight: Tensor) -> Tensor:  # (M, D, E·w) as (M, E, D, w)
        return weight.view(models, -1, ffn.experts, ffn.expert_width).transpose(1, 2)

    given = rows(x, (order // k)[:, None])[:, 0]
    if ffn.gated:
        hidden = activate(ffn.activation, product(given, columns(p[name + "w_in"]), None, segments))
        hidden = hidden * product(given, columns(p[name + "w_up"]), None, segments)
    else:
        bias = p[name + "b_in"].view(models, ffn.experts, -1)
        hidden = activate(ffn.activation, product(given, columns(p[name + "w_in"]), bias, segments))
    back = p[name + "w_out"].view(models, ffn.experts, ffn.expert_width, -1)
    sorted_out = product(hidden, back, p[name + "b_out"] if ffn.bias else None, segments)
    out = rows(sorted_out, order.argsort(dim=1)[:, None])[:, 0].view(models, tokens, k, -1)
    if ffn.plain_gates:
        return out[:, :, 0]
    return (out * gates.gather(-1, expert)[..., None]).sum(2)
