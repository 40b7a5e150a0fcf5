"""Trees on a GPU: one product for the top levels, then one for every subtree and the tokens that meet it.

A token opens d + 1 of a tree's nodes, and two tokens seldom open the same ones. Taking each token's rows alone is
one FLOP a byte, and loses to the dense product. So the top t levels are computed whole, by the vendor's product; a
kernel walks them. The tokens of each subtree are then brought together by a counting sort, and meet all its nodes
in one product whose rows serve many tokens: 2^t + 2^(d + 1 - t) - 2 units for d + 1. What is off the path is zero.

Sums have a fixed order: each tree's part of the output is written apart and the parts are added up in order, and
the gradient of a row of the weights belongs to one program, which meets its tokens in their order. Branches are
decided on sums in fp32, whatever the numbers' type.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.kernels.triton.feedforward import CODES, _phi, _phi_slope
from sparsity_moves.kernels.triton.linear import precision
from sparsity_moves.kernels.triton.subtrees import (
    DEEP,
    TOKENS,
    WIDE,
    Cut,
    Order,
    _descend,
    _respond,
    _spread,
    _weigh,
    cut,
    sort_twice,
)


@triton.jit
def _walk_top(
    responses, bias, value, slope, subtree, N, P, LEVELS: tl.constexpr, ACT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    tree = tl.program_id(1)
    n = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    column = tl.arange(0, 1 << LEVELS)
    crown = (1 << LEVELS) - 1
    inside = (n < N)[:, None] & (column > 0)[None, :]
    place = n[:, None] * (P * crown) + tree * crown + column[None, :] - 1
    a = tl.load(responses + place, mask=inside, other=0.0)
    a += tl.load(bias + tree * crown + column - 1, mask=column > 0, other=0.0).to(tl.float32)[None, :]
    on, node = _descend((a > 0).to(tl.int32), column, LEVELS)
    tl.store(value + place, tl.where(on, _phi(a, ACT), 0.0).to(value.dtype.element_ty), mask=inside)
    tl.store(slope + place, tl.where(on, _phi_slope(a, ACT), 0.0).to(slope.dtype.element_ty), mask=inside)
    tl.store(subtree + tree.to(tl.int64) * N + n, node - (1 << LEVELS), mask=n < N)


def wide_product(x: Tensor, w: Tensor) -> Tensor:
    """x wᵀ with its sums in fp32, as they come."""
    if x.dtype == torch.float32:
        return x @ w.T
    if x.is_cuda:
        return torch.mm(x, w.T, out_dtype=torch.float32)
    return x.float() @ w.float().T


class _Forest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, depth: int, activation: str
    ) -> Tensor:
        x, w_in, b_in, w_out = (t.contiguous() for t in (x, w_in, b_in, w_out))
        tokens, width = x.shape
        of = cut(len(w_in) // ((2 << depth) - 1), depth, tokens)
        crown = torch.arange(of.crown, device=x.device)
        top = (torch.arange(of.trees, device=x.device)[:, None] * of.nodes + crown).flatten()
        responses = wide_product(x, w_in[top])
        value_top, slope_top = (torch.empty_like(responses, dtype=x.dtype) for _ in range(2))
        subtree = torch.empty(of.trees, tokens, dtype=torch.int32, device=x.device)
        block = max(16, min(128, 2048 >> of.top))
        _walk_top[(triton.cdiv(tokens, block), of.trees)](
            responses, b_in[top], value_top, slope_top, subtree, tokens, of.trees,
            LEVELS=of.top, ACT=CODES[activation], BLOCK=block,
        )  # fmt: skip
        ctx.of, ctx.precision = of, precision()
        if not of.below:
            ctx.save_for_backward(x, w_in, w_out, top, value_top, slope_top)
            return value_top @ w_out[top]
        sorted_, by_tree = sort_twice(of, subtree)
        value, slope = (x.new_empty(of.bands * tokens, of.columns) for _ in range(2))
        _respond[(len(sorted_.group_of),)](
            x, w_in, b_in, value, slope, *sorted_.by_program(), of.groups,
            D=width, TOP=of.top, BELOW=of.below, BAND=of.band, ACT=CODES[activation], BACKWARD=False,
            PRECISION=ctx.precision, BM=TOKENS, BK=DEEP, num_warps=of.warps,
        )  # fmt: skip
        ctx.save_for_backward(x, w_in, w_out, top, value_top, slope_top, value, slope, *sorted_, *by_tree)
        return summed(of, value_top, w_out[top], value, w_out, sorted_, ctx.precision)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, w_in, w_out, top, value_top, slope_top, *below = ctx.saved_tensors
        upstream, of = gradients[0].contiguous(), ctx.of
        d_w_in, d_w_out, d_b_in = (torch.empty_like(w) for w in (w_in, w_out, w_in[:, 0]))
        d_top = (wide_product(upstream, w_out[top]) * slope_top).to(x.dtype)
        d_w_in[top] = d_top.T @ x
        d_w_out[top] = value_top.T @ upstream
        d_b_in[top] = d_top.sum(0)
        if not of.below:
            return d_top @ w_in[top], d_w_in, d_b_in, d_w_out, None, None
        value, slope, sorted_ = below[0], below[1], Order(*below[2:7])
        by_tree = Order(*below[7:])
        width = x.shape[1]
        d_below = torch.empty_like(value)
        _respond[(len(sorted_.group_of),)](
            upstream, w_out, w_out, d_below, slope, *sorted_.by_program(), of.groups,
            D=width, TOP=of.top, BELOW=of.below, BAND=of.band, ACT=0, BACKWARD=True, PRECISION=ctx.precision,
            BM=TOKENS, BK=DEEP, num_warps=of.warps,
        )  # fmt: skip
        grid = (triton.cdiv(width, WIDE), of.trees << of.top)
        cutting = {
            "D": width,
            "TOP": of.top,
            "BELOW": of.below,
            "BAND": of.band,
            "PRECISION": ctx.precision,
            "BM": DEEP,
            "BD": WIDE,
        }
        for values, rows, d_w, biased in ((d_below, x, d_w_in, True), (value, upstream, d_w_out, False)):
            _weigh[grid](
                values, rows, d_w, d_b_in, sorted_.place_of, by_tree.order, by_tree.bounds, len(x),
                BIASED=biased, **cutting,
            )  # fmt: skip
        d_x = summed(of, d_top, w_in[top], d_below, w_in, sorted_, ctx.precision)
        return d_x, d_w_in, d_b_in, d_w_out, None, None


def summed(
    of: Cut, value_top: Tensor, w_top: Tensor, value: Tensor, w: Tensor, sorted_: Order, rounding: str
) -> Tensor:
    """What every band's subtrees and the top add to each token, each apart, then added up in this order."""
    tokens, width = len(value_top), w.shape[1]
    parts = w.new_empty(of.bands + 1, tokens, width)
    torch.mm(value_top, w_top, out=parts[-1])
    _spread[(triton.cdiv(width, WIDE), len(sorted_.group_of))](
        value, w, parts, *sorted_.by_program(), tokens, of.groups,
        D=width, TOP=of.top, BELOW=of.below, BAND=of.band, PRECISION=rounding, BM=TOKENS, BD=WIDE, num_warps=8,
    )  # fmt: skip
    return parts.sum(0)


def forest(
    x: Float[Tensor, "N D"],
    w_in: Float[Tensor, "W D"],
    b_in: Float[Tensor, " W"],
    w_out: Float[Tensor, "W D"],
    depth: int,
    activation: str,
) -> Float[Tensor, "N D"]:
    """Σ φ(a_n) w_out,n over the paths of all trees, with its gradients; bf16 or fp32."""
    out: Tensor = _Forest.apply(x, w_in, b_in, w_out, depth, activation)
    return out
