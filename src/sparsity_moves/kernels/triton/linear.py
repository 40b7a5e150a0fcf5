"""A linear map at every token, the gradient of its matrix, and how products round.

Where products may round their factors to ten bits of mantissa and the matrix fits a program, one pass computes the
map and adds the bias and the stream: the vendor's product would read what it adds to, which something must have
written first. Going back, one pass gives the gradients of all three. How fp16 takes TF32's place is told in
`grouped`; here only gradients are scaled: mixtures of values past 65,504 would be infinite, and there are none.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.kernels.precision import ten_bits

BLOCK = 64
"""Tokens that a program takes at once."""
WIDEST = 128
"""Rows and columns of a matrix that a program holds."""
PROGRAMS = 264
"""Enough to keep a GPU busy: two for each multiprocessor of a Hopper."""
LARGEST = tl.constexpr(64.0)
"""Between this and half of it lies the largest gradient of a chunk in fp16."""


def precision() -> str:
    """How Triton's products round: to TF32's ten bits where they may, else to nearly all of fp32's."""
    return "tf32" if ten_bits() else "tf32x3"


def summed_product(x: Float[Tensor, "M N I"], d: Float[Tensor, "M N O"]) -> Float[Tensor, "M I O"]:
    """xᵀ d. A long sum with few outputs leaves most of a GPU idle, so it is cut into a few that are added up."""
    models, tokens = x.shape[:2]
    tiles = models * triton.cdiv(x.shape[2], 128) * triton.cdiv(d.shape[2], 128)
    wanted = min(8, PROGRAMS // tiles, tokens // 1024) if tiles <= 64 else 1
    parts = max((n for n in range(1, wanted + 1) if tokens % n == 0), default=1)
    if parts == 1:
        return x.transpose(1, 2) @ d
    cut = x.view(models * parts, tokens // parts, -1).transpose(1, 2) @ d.view(
        models * parts, tokens // parts, -1
    )
    return cut.view(models, parts, *cut.shape[1:]).sum(1)


def padded(size: int) -> int:
    """The least size of a product's side that holds so many."""
    power: int = triton.next_power_of_2(size)
    return max(16, power)


def runs(
    models: int, tokens: int, rows: int, columns: int, most: int = 2 * BLOCK
) -> tuple[tuple[int, int], int, dict[str, int]]:
    """How a matrix's gradient is summed: runs of tokens by models, tokens a run, and what a program takes at once,
    which is `most` tokens and no more."""
    # Four warps hold the gradient of half the widest matrix.
    few = padded(rows) * padded(columns) <= WIDEST * WIDEST // 2
    block, warps = (BLOCK, 4) if few else (most, 8)
    parts = max(1, min(triton.cdiv(tokens, block), PROGRAMS * 8 // warps // models))
    chunk = triton.cdiv(triton.cdiv(tokens, parts), block) * block
    return (triton.cdiv(tokens, chunk), models), chunk, {"BLOCK": block, "num_warps": warps, "num_stages": 2}


@triton.jit
def _magnified(d):
    """Gradients in fp16, the largest of them brought near `LARGEST`, and the power of two that undoes it."""
    largest = tl.max(tl.abs(d))
    # Where the largest is next to nothing, the power that brings it to LARGEST would be infinite.
    power = tl.minimum(tl.floor(-tl.log2(largest / LARGEST)), 100.0)
    scale = tl.where(largest > 0, tl.exp2(power), 1.0)
    return (d * scale).to(tl.float16), 1.0 / scale


@triton.jit
def _map_backward(
    x, weight, upstream, d_x, d_weight, d_bias, N, chunk, IN: tl.constexpr, INP: tl.constexpr, OUT: tl.constexpr,
    OUTP: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of x at a run of tokens, and their part of the matrix's and the bias's."""
    m = tl.program_id(1).to(tl.int64)
    n, i, o = tl.arange(0, BLOCK), tl.arange(0, INP), tl.arange(0, OUTP)
    sides = (i < IN)[:, None] & (o < OUT)[None, :]
    into = tl.load(weight + (m * IN + i)[:, None] * OUT + o[None, :], mask=sides, other=0.0).to(tl.float16)
    total = tl.zeros((INP, OUTP), tl.float32)
    of_bias = tl.zeros((OUTP,), tl.float32)
    begin = tl.program_id(0) * chunk
    for start in range(begin, tl.minimum(begin + chunk, N), BLOCK):
        at = (m * N + start + n)[:, None]
        here = (start + n < N)[:, None]
        dy = tl.load(upstream + at * OUT + o[None, :], mask=here & (o < OUT)[None, :], other=0.0)
        tile = tl.load(x + at * IN + i[None, :], mask=here & (i < IN)[None, :], other=0.0).to(tl.float16)
        if BIASED:
            of_bias += tl.sum(dy, axis=0)
        half, unscale = _magnified(dy)
        d_tile = tl.dot(half, tl.trans(into)) * unscale
        tl.store(d_x + at * IN + i[None, :], d_tile, mask=here & (i < IN)[None, :])
        total += tl.dot(tl.trans(tile), half) * unscale
    part = m * tl.num_programs(0) + tl.program_id(0)
    tl.store(d_weight + (part * IN + i)[:, None] * OUT + o[None, :], total, mask=sides)
    if BIASED:
        tl.store(d_bias + part * OUT + o, of_bias, mask=o < OUT)


@triton.jit
def _map(
    x, weight, bias, onto, y, N, IN: tl.constexpr, INP: tl.constexpr, OUT: tl.constexpr, OUTP: tl.constexpr,
    BIASED: tl.constexpr, ADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i, o = tl.arange(0, INP), tl.arange(0, OUTP)
    there = (n < N)[:, None]
    tile = tl.load(x + (m * N + n)[:, None] * IN + i[None, :], mask=there & (i < IN)[None, :], other=0.0)
    sides = (i < IN)[:, None] & (o < OUT)[None, :]
    into = tl.load(weight + (m * IN + i)[:, None] * OUT + o[None, :], mask=sides, other=0.0)
    out = tl.dot(tile.to(tl.float16), into.to(tl.float16))
    if BIASED:
        out += tl.load(bias + m * OUT + o, mask=o < OUT, other=0.0)[None, :]
    to = (m * N + n)[:, None] * OUT + o[None, :]
    inside = there & (o < OUT)[None, :]
    if ADDED:
        out += tl.load(onto + to, mask=inside, other=0.0)
    tl.store(y + to, out, mask=inside)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased, ctx.added = bias is not None, onto is not None
        models, tokens, inputs = x.shape
        outputs = weight.shape[2]
        ctx.at_once = ten_bits() and max(inputs, outputs) <= WIDEST
        if not ctx.at_once:
            y = x @ weight if bias is None else torch.baddbmm(bias[:, None], x, weight)
            return y if onto is None else y.add_(onto)
        y = x.new_empty(models, tokens, outputs)
        # A pointer that the settings leave unread may be any.
        _map[(triton.cdiv(tokens, BLOCK), models)](
            x, weight.contiguous(), x if bias is None else bias.contiguous(),
            x if onto is None else onto.contiguous(), y, tokens, IN=inputs, INP=padded(inputs), OUT=outputs,
            OUTP=padded(outputs), BIASED=ctx.biased, ADDED=ctx.added, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        upstream = gradients[0].contiguous()
        d_onto = upstream if ctx.added else None
        if ctx.at_once:
            models, tokens, inputs = x.shape
            outputs = upstream.shape[2]
            grid, chunk, sizes = runs(models, tokens, inputs, outputs, BLOCK)
            d_x = torch.empty_like(x)
            d_weight, d_bias = (
                x.new_empty(models, grid[0], *shape) for shape in ((inputs, outputs), (outputs,))
            )
            _map_backward[grid](
                x, weight.contiguous(), upstream, d_x, d_weight, d_bias, tokens, chunk, IN=inputs,
                INP=padded(inputs), OUT=outputs, OUTP=padded(outputs), BIASED=ctx.biased,
                **(sizes | {"num_stages": 3}),
            )  # fmt: skip
            return d_x, d_weight.sum(1), d_bias.sum(1) if ctx.biased else None, d_onto
        d_bias = upstream.sum(1) if ctx.biased else None
        return upstream @ weight.transpose(1, 2), summed_product(x, upstream), d_bias, d_onto


def linear(
    x: Float[Tensor, "M N I"],
    weight: Float[Tensor, "M I O"],
    bias: Float[Tensor, "M O"] | None,
    onto: Float[Tensor, "M N O"] | None = None,
) -> Float[Tensor, "M N O"]:
    """x @ weight + bias, and `onto` too."""
    out: Tensor = _Linear.apply(x.contiguous(), weight, bias, onto)
    return out
