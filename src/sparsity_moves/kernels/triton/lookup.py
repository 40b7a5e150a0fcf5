"""Rows of small tables, and the gradient of looking them up.

A table has a row a (position, token). Its gradient sums over all sequences that had this token there: a product
with a one-hot matrix, made on the fly a block at a time, where atomic additions would sum in a random order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.kernels.triton.linear import padded, precision
from sparsity_moves.kernels.triton.segments import Segments, sum_segments


@triton.jit
def _look_up(
    table, index, out, B, rows, T: tl.constexpr, START: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
    WP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WP)
    here = n < B * P
    row = tl.load(index + (m * B + n // P) * T + START + n % P, mask=here, other=0)
    there = here[:, None] & (column < WIDTH)[None, :]
    x = tl.load(table + (m * rows + row)[:, None] * WIDTH + column[None, :], mask=there, other=0.0)
    tl.store(out + (m * B * P + n)[:, None] * WIDTH + column[None, :], x, mask=there)


@triton.jit
def _sum_rows(
    gradient,
    index,
    out,
    B,
    T: tl.constexpr,
    START: tl.constexpr,
    P: tl.constexpr,
    ONLY_AFTER: tl.constexpr,
    ASKED_START: tl.constexpr,
    ASKED: tl.constexpr,
    V: tl.constexpr,
    VP: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """One position of one model: out[part, m, p, token] is the sum of its rows of `gradient`.

    Columns before ONLY_AFTER hold something at the asked positions alone, and are not read elsewhere.
    """
    m = (tl.program_id(0) // P).to(tl.int64)
    p = tl.program_id(0) % P
    first = tl.program_id(1) * BLOCK_F
    part = tl.program_id(2)
    column = first + tl.arange(0, BLOCK_F)
    symbol = tl.arange(0, VP)
    total = tl.zeros((VP, BLOCK_F), tl.float32)
    empty = (first < ONLY_AFTER) & ((p + START < ASKED_START) | (p + START >= ASKED_START + ASKED))
    if not empty:
        for start in range(0, PART, BLOCK_B):
            b = part * PART + start + tl.arange(0, BLOCK_B)
            inside = b < B
            token = tl.load(index + (m * B + b) * T + START + p, mask=inside, other=-1) - (START + p) * V
            rows = tl.load(
                gradient + ((m * B + b) * P + p)[:, None] * WIDTH + column[None, :],
                mask=inside[:, None] & (column < WIDTH)[None, :],
                other=0.0,
            )
            one_hot = (symbol[:, None] == token[None, :]).to(tl.float32)
            total += tl.dot(one_hot, rows, input_precision=PRECISION)
    models = tl.num_programs(0) // P
    row = ((part * models + m) * P + p) * V + symbol
    tl.store(
        out + row[:, None] * WIDTH + column[None, :],
        total,
        mask=(symbol < V)[:, None] & (column < WIDTH)[None, :],
    )


def sum_rows(
    gradient: Float[Tensor, "M B P F"],
    index: Int[Tensor, "M B T"],
    start: int,
    size: int,
    *,
    only_after: int = 0,
    asked: tuple[int, int] = (0, 0),
) -> Float[Tensor, "M S F"]:
    """The gradient of a table of S = T·V rows from that of its rows at positions start, start + 1, …, start + P - 1.

    Columns before `only_after` are read at positions asked[0] to asked[0] + asked[1] - 1 alone.
    """
    models, batch, positions, width = gradient.shape
    length = index.shape[-1]
    vocabulary = size // length
    block_f = min(64, padded(width))
    if only_after:  # a block lies on one side of it
        block_f = min(block_f, only_after & -only_after)
    programs = models * positions * triton.cdiv(width, block_f)
    # Enough programs for the device, but no more partial sums than that needs.
    parts = max(1, min(triton.cdiv(batch, 512), 2048 // programs))
    part_size = triton.cdiv(triton.cdiv(batch, parts), 64) * 64
    out = gradient.new_empty(parts, models, positions, vocabulary, width)
    _sum_rows[(models * positions, triton.cdiv(width, block_f), parts)](
        gradient.contiguous(),
        index,
        out,
        batch,
        T=length,
        START=start,
        P=positions,
        ONLY_AFTER=only_after,
        ASKED_START=asked[0],
        ASKED=asked[1],
        V=vocabulary,
        VP=padded(vocabulary),
        WIDTH=width,
        PART=part_size,
        PRECISION=precision(),
        BLOCK_B=64,
        BLOCK_F=block_f,
    )
    return everywhere(out[0] if parts == 1 else out.sum(0), start, length)


def everywhere(total: Float[Tensor, "M P V F"], start: int, length: int) -> Float[Tensor, "M S F"]:
    """A table's gradient from that of its rows at some positions; nobody looked at the others."""
    models, positions, vocabulary, width = total.shape
    if positions == length:
        return total.flatten(1, 2)
    full = total.new_zeros(models, length, vocabulary, width)
    full[:, start : start + positions] = total
    return full.flatten(1, 2)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, start: int, end: int, by: Segments | None) -> Tensor:
        models, rows, width = table.shape
        batch, length = index.shape[1:]
        ctx.save_for_backward(index)
        ctx.start, ctx.size, ctx.by = start, rows, by
        out = table.new_empty(models, batch, end - start, width)
        padded = triton.next_power_of_2(width)
        block = max(1, 4096 // padded)
        grid = (triton.cdiv(batch * (end - start), block), models)
        _look_up[grid](
            table.contiguous(),
            index,
            out,
            batch,
            rows,
            T=length,
            START=start,
            P=end - start,
            WIDTH=width,
            WP=padded,
            BLOCK=block,
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        if ctx.by is None:
            total = sum_rows(gradients[0], index, ctx.start, ctx.size)
        else:
            total = everywhere(sum_segments(gradients[0], ctx.by, ctx.start), ctx.start, index.shape[-1])
        return total, None, None, None, None


def lookup(
    table: Float[Tensor, "M S D"],
    index: Int[Tensor, "M B T"],
    positions: tuple[int, ...],
    by: Segments | None = None,
) -> Float[Tensor, "M B P D"]:
    """Rows `index[m, b, p]` of model m's table, at neighbouring positions.

    With `by`, the gradient is right for the sequences that it orders alone, and quicker.
    """
    out: Tensor = _Lookup.apply(table, index, positions[0], positions[-1] + 1, by)
    return out
