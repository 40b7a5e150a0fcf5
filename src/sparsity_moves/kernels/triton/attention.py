"""Attention over short sequences: one program holds a few sequences, for one head.

Very short ones (modular addition's three tokens) are multiplied out element by element. From eight tokens on, one
sequence is a product, or as many as sixteen rows hold, of which the blocks on the diagonal are wanted: a warp takes
sixteen rows, so the least is multiplied that is not wanted. Queries, keys and values
are either every token's own or, in the first layer, rows of small tables that an index points into; the tables
stay in the cache, so that attention reads its index and writes its mixtures.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.kernels.triton.linear import precision
from sparsity_moves.kernels.triton.lookup import sum_rows

VERY_SHORT = 7
"""Tokens up to which pairs are multiplied out element by element."""


@triton.jit
def _keys_and_values(
    projected,
    index,
    B,
    rows,
    b,
    m,
    head,
    T: tl.constexpr,
    TP: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    BY_TABLE: tl.constexpr,
):
    t = tl.arange(0, TP)
    unit = head * K + tl.arange(0, K)
    there = (b < B)[:, None] & (t < T)[None, :]
    if BY_TABLE:
        row = tl.load(index + (m * B + b[:, None]) * T + t[None, :], mask=there, other=0)
    else:
        row = b[:, None] * T + t[None, :]
    place = projected + (m * rows + row)[:, :, None] * (3 * H * K) + unit[None, None, :]
    keys = tl.load(place + H * K, mask=there[:, :, None], other=0.0)
    values = tl.load(place + 2 * H * K, mask=there[:, :, None], other=0.0)
    return keys, values, there


@triton.jit
def _query(
    projected,
    index,
    B,
    rows,
    b,
    m,
    head,
    position,
    T: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    BY_TABLE: tl.constexpr,
):
    here = b < B
    if BY_TABLE:
        row = tl.load(index + (m * B + b) * T + position, mask=here, other=0)
    else:
        row = b * T + position
    place = projected + (m * rows + row)[:, None] * (3 * H * K) + (head * K + tl.arange(0, K))[None, :]
    return tl.load(place, mask=here[:, None], other=0.0)


@triton.jit
def _pattern(query, keys, position, scale, T: tl.constexpr, TP: tl.constexpr, CAUSAL: tl.constexpr):
    t = tl.arange(0, TP)
    scores = tl.sum(query[:, None, :] * keys, axis=2) * scale
    visible = t < T
    if CAUSAL:
        visible = visible & (t <= position)
    scores = tl.where(visible[None, :], scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _attend(
    projected,
    index,
    out,
    B,
    rows,
    scale,
    T: tl.constexpr,
    TP: tl.constexpr,
    START: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    CAUSAL: tl.constexpr,
    BY_TABLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keys, values, _ = _keys_and_values(projected, index, B, rows, b, m, head, T, TP, H, K, BY_TABLE)
    for p in range(P):
        query = _query(projected, index, B, rows, b, m, head, START + p, T, H, K, BY_TABLE)
        pattern = _pattern(query, keys, START + p, scale, T, TP, CAUSAL)
        mixed = tl.sum(pattern[:, :, None] * values, axis=1)
        place = out + ((m * B + b) * P + p)[:, None] * (H * K) + (head * K + tl.arange(0, K))[None, :]
        tl.store(place, mixed, mask=(b < B)[:, None])


@triton.jit
def _attend_backward(
    projected,
    index,
    upstream,
    gradient,
    B,
    rows,
    scale,
    T: tl.constexpr,
    TP: tl.constexpr,
    START: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    CAUSAL: tl.constexpr,
    BY_TABLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of every token's own query (at the asked positions), key and value."""
    m = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    unit = head * K + tl.arange(0, K)
    keys, values, there = _keys_and_values(projected, index, B, rows, b, m, head, T, TP, H, K, BY_TABLE)
    d_keys = tl.zeros_like(keys)
    d_values = tl.zeros_like(values)
    for p in range(P):
        query = _query(projected, index, B, rows, b, m, head, START + p, T, H, K, BY_TABLE)
        pattern = _pattern(query, keys, START + p, scale, T, TP, CAUSAL)
        place = upstream + ((m * B + b) * P + p)[:, None] * (H * K) + unit[None, :]
        d_mixed = tl.load(place, mask=(b < B)[:, None], other=0.0)
        d_pattern = tl.sum(d_mixed[:, None, :] * values, axis=2)
        d_scores = pattern * (d_pattern - tl.sum(pattern * d_pattern, axis=1)[:, None]) * scale
        d_query = tl.sum(d_scores[:, :, None] * keys, axis=1)
        place = gradient + ((m * B + b) * T + START + p)[:, None] * (3 * H * K) + unit[None, :]
        tl.store(place, d_query, mask=(b < B)[:, None])
        d_keys += d_scores[:, :, None] * query[:, None, :]
        d_values += pattern[:, :, None] * d_mixed[:, None, :]
    row = (m * B + b[:, None]) * T + tl.arange(0, TP)[None, :]
    place = gradient + row[:, :, None] * (3 * H * K) + unit[None, None, :]
    tl.store(place + H * K, d_keys, mask=there[:, :, None])
    tl.store(place + 2 * H * K, d_values, mask=there[:, :, None])


@triton.jit
def _tile(
    projected, index, B, rows, m, head, T: tl.constexpr, TP: tl.constexpr, H: tl.constexpr, K: tl.constexpr,
    BY_TABLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sequence, position, validity, and where queries begin, of BLOCK · TP tokens."""
    r = tl.arange(0, BLOCK * TP)
    b = tl.program_id(0) * BLOCK + r // TP
    t = r % TP
    there = (b < B) & (t < T)
    if BY_TABLE:
        row = tl.load(index + (m * B + b) * T + t, mask=there, other=0)
    else:
        row = b * T + t
    place = projected + (m * rows + row)[:, None] * (3 * H * K) + (head * K + tl.arange(0, K))[None, :]
    return b, t, there, place


@triton.jit
def _block_pattern(
    query, keys, t, scale, T: tl.constexpr, TP: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, BLOCK * TP)
    scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
    visible = ((r // TP)[:, None] == (r // TP)[None, :]) & (t < T)[None, :]
    if CAUSAL:
        visible = visible & (t[None, :] <= t[:, None])
    visible = visible | (r[:, None] == r[None, :])  # rows of padding see themselves, or they would be 0 / 0
    scores = tl.where(visible, scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _attend_blocks(
    projected,
    index,
    out,
    B,
    rows,
    scale,
    T: tl.constexpr,
    TP: tl.constexpr,
    START: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    CAUSAL: tl.constexpr,
    BY_TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    b, t, there, place = _tile(projected, index, B, rows, m, head, T, TP, H, K, BY_TABLE, BLOCK)
    query = tl.load(place, mask=there[:, None], other=0.0)
    keys = tl.load(place + H * K, mask=there[:, None], other=0.0)
    values = tl.load(place + 2 * H * K, mask=there[:, None], other=0.0)
    pattern = _block_pattern(query, keys, t, scale, T, TP, CAUSAL, PRECISION, BLOCK)
    mixed = tl.dot(pattern, values, input_precision=PRECISION)
    asked = there & (t >= START) & (t < START + P)
    to = out + ((m * B + b) * P + t - START)[:, None] * (H * K) + (head * K + tl.arange(0, K))[None, :]
    tl.store(to, mixed, mask=asked[:, None])


@triton.jit
def _attend_blocks_backward(
    projected,
    index,
    upstream,
    gradient,
    B,
    rows,
    scale,
    T: tl.constexpr,
    TP: tl.constexpr,
    START: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    CAUSAL: tl.constexpr,
    BY_TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    b, t, there, place = _tile(projected, index, B, rows, m, head, T, TP, H, K, BY_TABLE, BLOCK)
    query = tl.load(place, mask=there[:, None], other=0.0)
    keys = tl.load(place + H * K, mask=there[:, None], other=0.0)
    values = tl.load(place + 2 * H * K, mask=there[:, None], other=0.0)
    pattern = _block_pattern(query, keys, t, scale, T, TP, CAUSAL, PRECISION, BLOCK)
    unit = (head * K + tl.arange(0, K))[None, :]
    asked = there & (t >= START) & (t < START + P)
    source = upstream + ((m * B + b) * P + t - START)[:, None] * (H * K) + unit
    d_mixed = tl.load(source, mask=asked[:, None], other=0.0)
    d_pattern = tl.dot(d_mixed, tl.trans(values), input_precision=PRECISION)
    d_scores = pattern * (d_pattern - tl.sum(pattern * d_pattern, axis=1)[:, None]) * scale
    to = gradient + ((m * B + b) * T + t)[:, None] * (3 * H * K) + unit
    tl.store(to, tl.dot(d_scores, keys, input_precision=PRECISION), mask=there[:, None])
    d_keys = tl.dot(tl.trans(d_scores), query, input_precision=PRECISION)
    tl.store(to + H * K, d_keys, mask=there[:, None])
    d_values = tl.dot(tl.trans(pattern), d_mixed, input_precision=PRECISION)
    tl.store(to + 2 * H * K, d_values, mask=there[:, None])


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        index: Tensor | None,
        start: int,
        positions: int,
        length: int,
        heads: int,
        causal: bool,
    ) -> Tensor:
        projected = projected.contiguous()
        models, rows, triple = projected.shape
        batch = rows // length if index is None else index.shape[1]
        width = triple // 3 // heads
        padded = triton.next_power_of_2(length)
        blocks = length > VERY_SHORT and width >= 16
        block = max(1, 16 // padded) if blocks else max(1, 2048 // (padded * width))
        out = projected.new_empty(models, batch, positions, heads, width)
        ctx.settings = {
            "T": length,
            "TP": padded,
            "START": start,
            "P": positions,
            "H": heads,
            "K": width,
            "CAUSAL": causal,
            "BY_TABLE": index is not None,
            "BLOCK": block,
            **({"PRECISION": precision(), "num_warps": min(4, block * padded // 16)} if blocks else {}),
        }
        ctx.grid = (triton.cdiv(batch, block), heads, models)
        ctx.batch = batch
        given = projected if index is None else index  # without an index the pointer is not read
        ctx.backward_kernel = _attend_blocks_backward if blocks else _attend_backward
        kernel = _attend_blocks if blocks else _attend
        kernel[ctx.grid](projected, given, out, batch, rows, 1 / math.sqrt(width), **ctx.settings)
        ctx.save_for_backward(projected, given)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        projected, index = ctx.saved_tensors
        models, rows, triple = projected.shape
        of = ctx.settings
        shape = (models, ctx.batch, of["T"], triple)
        # Queries that nobody asked for have no gradient; by table, `sum_rows` does not read their place.
        fresh = of["BY_TABLE"] or of["P"] == of["T"]
        gradient = projected.new_empty(shape) if fresh else projected.new_zeros(shape)
        scale = 1 / math.sqrt(of["K"])
        ctx.backward_kernel[ctx.grid](
            projected, index, gradients[0].contiguous(), gradient, ctx.batch, rows, scale, **of
        )
        if of["BY_TABLE"]:
            asked = (of["START"], of["P"])
            gradient = sum_rows(gradient, index, 0, rows, only_after=triple // 3, asked=asked)
        return gradient.view_as(projected), None, None, None, None, None, None


def attend(
    projected: Float[Tensor, "M S 3D"],
    index: Int[Tensor, "M B T"] | None,
    positions: tuple[int, ...],
    length: int,
    heads: int,
    causal: bool,
) -> Float[Tensor, "M B P H K"]:
    """Each head's mixture of values at neighbouring positions.

    `projected` holds query, key and value of every table row, which `index` points into, or, without an index, of
    every token of every sequence (S = B·T).
    """
    out: Tensor = _Attend.apply(projected, index, positions[0], len(positions), length, heads, causal)
    return out
