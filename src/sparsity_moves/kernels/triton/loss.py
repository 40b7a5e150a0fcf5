"""Unembedding and cross-entropy over few classes.

Where products may round their factors to ten bits of mantissa and the matrix fits a program, logits are never
written: going back they are computed again, and their gradient is written for the matrix's. Elsewhere the vendor's
product writes them, and they are read and overwritten by their gradient. How fp16 takes TF32's place is told in
`grouped`. The classes are padded to a multiple of eight, which the vendor's products want.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.kernels.triton.linear import BLOCK, WIDEST, halved, magnified, summed_product


@triton.jit
def _loss(logits, target, c):
    """Of a row of logits each, -∞ at classes that are none."""
    highest = tl.max(logits, axis=1)
    total = tl.log(tl.sum(tl.exp(logits - highest[:, None]), axis=1)) + highest
    return total - tl.sum(tl.where(c[None, :] == target[:, None], logits, 0.0), axis=1)


@triton.jit
def _slope(logits, target, upstream, c):
    """The gradient over the logits."""
    exponentials = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    p = exponentials / tl.sum(exponentials, axis=1)[:, None]
    return tl.where(c[None, :] == target[:, None], p - 1, p) * upstream[:, None]


@triton.jit
def _entropy(
    logits, targets, out, N, STRIDE: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    inside = (n < N)[:, None] & (c < C)[None, :]
    x = tl.load(logits + n[:, None] * STRIDE + c[None, :], mask=inside, other=-float("inf"))
    x = tl.where((n < N)[:, None], x, 0.0)
    tl.store(out + n, _loss(x, tl.load(targets + n, mask=n < N, other=0), c), mask=n < N)


@triton.jit
def _entropy_backward(
    logits, targets, upstream, N, STRIDE: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr
):
    """Writes the gradient over the logits, and zero over their padding."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    inside = (n < N)[:, None] & (c < C)[None, :]
    place = logits + n[:, None] * STRIDE + c[None, :]
    x = tl.load(place, mask=inside, other=-float("inf"))
    x = tl.where((n < N)[:, None], x, 0.0)
    target = tl.load(targets + n, mask=n < N, other=0)
    d = _slope(x, target, tl.load(upstream + n, mask=n < N, other=0.0), c)
    tl.store(place, d, mask=(n < N)[:, None] & (c < STRIDE)[None, :])


@triton.jit
def _logits(
    x, unembed, m, n, c, N, D: tl.constexpr, DP: tl.constexpr, STRIDE: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """Some tokens' logits, and the matrix in fp16."""
    d = tl.arange(0, DP)
    tile = tl.load(
        x + (m * N + n)[:, None] * D + d[None, :], mask=(n < N)[:, None] & (d < D)[None, :], other=0.0
    )
    sides = (d < D)[:, None] & (c < C)[None, :]
    into = tl.load(unembed + (m * D + d)[:, None] * STRIDE + c[None, :], mask=sides, other=0.0).to(tl.float16)
    logits = tl.dot(tile.to(tl.float16), into)
    return tl.where((c < C)[None, :], logits, -float("inf")), into


@triton.jit
def _answers(
    x, unembed, targets, out, N, D: tl.constexpr, DP: tl.constexpr, STRIDE: tl.constexpr, C: tl.constexpr,
    CP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    logits, _ = _logits(x, unembed, m, n, c, N, D, DP, STRIDE, C)
    target = tl.load(targets + m * N + n, mask=n < N, other=0)
    tl.store(out + m * N + n, _loss(logits, target, c), mask=n < N)


@triton.jit
def _answers_backward(
    x, unembed, targets, upstream, d_logits, d_x, N, D: tl.constexpr, DP: tl.constexpr, STRIDE: tl.constexpr,
    C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients over the logits, with their padding, and over x."""
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c, d = tl.arange(0, CP), tl.arange(0, DP)
    logits, into = _logits(x, unembed, m, n, c, N, D, DP, STRIDE, C)
    target = tl.load(targets + m * N + n, mask=n < N, other=0)
    slope = _slope(logits, target, tl.load(upstream + m * N + n, mask=n < N, other=0.0), c)
    row = (m * N + n)[:, None]
    tl.store(d_logits + row * STRIDE + c[None, :], slope, mask=(n < N)[:, None] & (c < STRIDE)[None, :])
    magnified_slope, smaller = magnified(slope)
    back = tl.dot(magnified_slope, tl.trans(into)) * smaller
    tl.store(d_x + row * D + d[None, :], back, mask=(n < N)[:, None] & (d < D)[None, :])


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unembed: Tensor, targets: Tensor) -> Tensor:
        classes, d_model = unembed.shape[-1], x.shape[-1]
        padded = F.pad(unembed, (0, -classes % 8)).contiguous()
        flat, targets = x.flatten(1, 2).contiguous(), targets.contiguous()
        stride = padded.shape[-1]
        ctx.settings = {"STRIDE": stride, "C": classes, "CP": max(16, triton.next_power_of_2(stride))}
        ctx.shape = x.shape
        out = flat.new_empty(targets.shape)
        ctx.whole = halved() and max(d_model, stride) <= WIDEST
        if ctx.whole:
            models, tokens = flat.shape[:2]
            ctx.settings |= {"D": d_model, "DP": max(16, triton.next_power_of_2(d_model)), "BLOCK": BLOCK}
            ctx.save_for_backward(flat, padded, targets)
            _answers[(triton.cdiv(tokens, BLOCK), models)](flat, padded, targets, out, tokens, **ctx.settings)
            return out
        ctx.settings |= {"BLOCK": 32}
        logits = flat @ padded
        ctx.save_for_backward(flat, padded, targets, logits)
        _entropy[(triton.cdiv(targets.numel(), 32),)](logits, targets, out, targets.numel(), **ctx.settings)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        flat, padded, targets, *left = ctx.saved_tensors
        upstream = gradients[0].contiguous()
        if ctx.whole:
            models, tokens = flat.shape[:2]
            d_logits, d_x = flat.new_empty(models, tokens, padded.shape[-1]), torch.empty_like(flat)
            _answers_backward[(triton.cdiv(tokens, BLOCK), models)](
                flat, padded, targets, upstream, d_logits, d_x, tokens, **ctx.settings
            )
        else:
            d_logits = left[0]
            _entropy_backward[(triton.cdiv(targets.numel(), 32),)](
                d_logits, targets, upstream, targets.numel(), **ctx.settings
            )
            d_x = d_logits @ padded.transpose(1, 2)
        d_unembed = summed_product(flat, d_logits)[..., : ctx.settings["C"]]
        return d_x.view(ctx.shape), d_unembed, None


def cross_entropy(
    x: Float[Tensor, "M B R D"], unembed: Float[Tensor, "M D C"], targets: Int[Tensor, "M B R"]
) -> Float[Tensor, "M B R"]:
    """-log softmax(x @ unembed)[target] of every answer. Its gradient can be taken once."""
    out: Tensor = _Entropy.apply(x, unembed, targets)
    return out
