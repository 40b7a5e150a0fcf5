"""Unembedding and cross-entropy over few classes.

Where products may round their factors to ten bits of mantissa and the unembedding fits a program, logits are never
written: a program computes those of a few tokens at a time and goes on to their loss. Going back it computes them
again, and takes their gradient on to the stream's and to its share of the unembedding's. How fp16 takes TF32's place
is told in `grouped`; the stream is kept in fp16 for the way back. Elsewhere logits are written, read, and overwritten
by their gradient; the classes are padded to a multiple of eight, which the vendor's products want.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.kernels.precision import ten_bits
from sparsity_moves.kernels.triton.linear import WIDEST, _magnified, padded, runs, summed_product


@triton.jit
def _below_largest(tile, unembed, C: tl.constexpr, CP: tl.constexpr):
    """Each token's logits less the largest of them; of classes that there are not, -inf."""
    logits = tl.where((tl.arange(0, CP) < C)[None, :], tl.dot(tile, unembed), -float("inf"))
    return logits - tl.max(logits, axis=1)[:, None]


@triton.jit
def _loss(
    x, unembed, targets, rounded, out, N, chunk, D: tl.constexpr, DP: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The losses of a chunk of tokens, and their x in fp16."""
    m = tl.program_id(1).to(tl.int64)
    d, c = tl.arange(0, DP), tl.arange(0, CP)
    sides = (d < D)[:, None] & (c < C)[None, :]
    into = tl.load(unembed + (m * D + d)[:, None] * C + c[None, :], mask=sides, other=0.0).to(tl.float16)
    n = tl.arange(0, BLOCK)
    place = n[:, None] * D + d[None, :]
    begin = tl.program_id(0) * chunk
    for start in range(begin, tl.minimum(begin + chunk, N), BLOCK):
        at = m * N + start
        here = start + n < N
        wide = here[:, None] & (d < D)[None, :]
        tile = tl.load(x + at * D + place, mask=wide, other=0.0).to(tl.float16)
        target = tl.load(targets + at + n, mask=here, other=0)
        tl.store(rounded + at * D + place, tile, mask=wide)
        below = _below_largest(tile, into, C, CP)
        right = tl.sum(tl.where(c[None, :] == target[:, None], below, 0.0), axis=1)
        tl.store(out + at + n, tl.log(tl.sum(tl.exp(below), axis=1)) - right, mask=here)


@triton.jit
def _loss_backward(
    rounded, unembed, targets, upstream, d_x, d_unembed, N, chunk, D: tl.constexpr, DP: tl.constexpr, C: tl.constexpr,
    CP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The stream's gradient at a chunk of tokens, and their part of the unembedding's."""
    m = tl.program_id(1).to(tl.int64)
    d, c = tl.arange(0, DP), tl.arange(0, CP)
    sides = (d < D)[:, None] & (c < C)[None, :]
    into = tl.load(unembed + (m * D + d)[:, None] * C + c[None, :], mask=sides, other=0.0).to(tl.float16)
    n = tl.arange(0, BLOCK)
    place = n[:, None] * D + d[None, :]
    total = tl.zeros((DP, CP), tl.float32)
    begin = tl.program_id(0) * chunk
    for start in range(begin, tl.minimum(begin + chunk, N), BLOCK):
        at = m * N + start
        here = start + n < N
        wide = here[:, None] & (d < D)[None, :]
        tile = tl.load(rounded + at * D + place, mask=wide, other=0.0)
        target = tl.load(targets + at + n, mask=here, other=0)
        weight = tl.load(upstream + at + n, mask=here, other=0.0)
        # The sum's logarithm, as large as the logits, would keep too few digits of what a sure answer leaves.
        exponentials = tl.exp(_below_largest(tile, into, C, CP))
        d_logits = exponentials * (weight / tl.sum(exponentials, axis=1))[:, None]
        d_logits = tl.where(c[None, :] == target[:, None], d_logits - weight[:, None], d_logits)
        d_half, unscale = _magnified(d_logits)
        tl.store(d_x + at * D + place, tl.dot(d_half, tl.trans(into)) * unscale, mask=wide)
        total += tl.dot(tl.trans(tile), d_half) * unscale
    part = m * tl.num_programs(0) + tl.program_id(0)
    tl.store(d_unembed + (part * D + d)[:, None] * C + c[None, :], total, mask=sides)


@triton.jit
def _entropy(
    logits, targets, out, N, STRIDE: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    inside = (n < N)[:, None] & (c < C)[None, :]
    x = tl.load(logits + n[:, None] * STRIDE + c[None, :], mask=inside, other=-float("inf"))
    x = tl.where((n < N)[:, None], x, 0.0)
    target = tl.load(targets + n, mask=n < N, other=0)
    highest = tl.max(x, axis=1)
    total = tl.log(tl.sum(tl.exp(x - highest[:, None]), axis=1)) + highest
    right = tl.sum(tl.where(c[None, :] == target[:, None], x, 0.0), axis=1)
    tl.store(out + n, total - right, mask=n < N)


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
    exponentials = tl.exp(x - tl.max(x, axis=1)[:, None])
    p = exponentials / tl.sum(exponentials, axis=1)[:, None]
    p = tl.where(c[None, :] == target[:, None], p - 1, p)
    p = p * tl.load(upstream + n, mask=n < N, other=0.0)[:, None]
    tl.store(place, p, mask=(n < N)[:, None] & (c < STRIDE)[None, :])


class _Unwritten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unembed: Tensor, targets: Tensor) -> Tensor:
        models, tokens, width = x.shape
        classes = unembed.shape[-1]
        ctx.grid, ctx.chunk, sizes = runs(models, tokens, width, classes)
        rows, columns = padded(width), padded(classes)
        ctx.settings = {"D": width, "DP": rows, "C": classes, "CP": columns, **sizes}
        out, rounded = x.new_empty(models, tokens), torch.empty_like(x, dtype=torch.float16)
        _loss[ctx.grid](x, unembed, targets, rounded, out, tokens, ctx.chunk, **ctx.settings)
        ctx.save_for_backward(rounded, unembed, targets)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rounded, unembed, targets = ctx.saved_tensors
        parts, models = ctx.grid
        d_x = unembed.new_empty(rounded.shape)
        d_unembed = unembed.new_empty(models, parts, *unembed.shape[1:])
        _loss_backward[ctx.grid](
            rounded, unembed, targets, gradients[0].contiguous(), d_x, d_unembed, rounded.shape[1], ctx.chunk,
            **ctx.settings,
        )  # fmt: skip
        return d_x, d_unembed.sum(1), None


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unembed: Tensor, targets: Tensor) -> Tensor:
        classes = unembed.shape[-1]
        padded = F.pad(unembed, (0, -classes % 8))
        flat, targets = x.flatten(1, 2).contiguous(), targets.contiguous()
        logits = flat @ padded
        out = logits.new_empty(targets.shape)
        stride = padded.shape[-1]
        ctx.settings = {"STRIDE": stride, "C": classes, "CP": triton.next_power_of_2(stride), "BLOCK": 32}
        ctx.save_for_backward(flat, padded, targets, logits)
        ctx.shape = x.shape
        _entropy[(triton.cdiv(targets.numel(), 32),)](logits, targets, out, targets.numel(), **ctx.settings)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        flat, padded, targets, logits = ctx.saved_tensors
        _entropy_backward[(triton.cdiv(targets.numel(), 32),)](
            logits, targets, gradients[0].contiguous(), targets.numel(), **ctx.settings
        )
        d_x = (logits @ padded.transpose(1, 2)).view(ctx.shape)
        d_unembed = summed_product(flat, logits)[..., : ctx.settings["C"]]
        return d_x, d_unembed, None


def cross_entropy(
    x: Float[Tensor, "M B R D"], unembed: Float[Tensor, "M D C"], targets: Int[Tensor, "M B R"]
) -> Float[Tensor, "M B R"]:
    """-log softmax(x @ unembed)[target] of every answer. Its gradient can be taken once."""
    if ten_bits() and max(unembed.shape[1:]) <= WIDEST:
        out: Tensor = _Unwritten.apply(
            x.flatten(1, 2).contiguous(), unembed.contiguous(), targets.flatten(1).contiguous()
        )
        return out.view(targets.shape)
    written: Tensor = _Entropy.apply(x, unembed, targets)
    return written
