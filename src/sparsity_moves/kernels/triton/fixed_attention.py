"""Attention by table over very short sequences that never change: its gradient, summed by token as it arises.

Going back, one pass gives the weights and the gradients of the scores, a few numbers a sequence; a second goes
through the sequences in the order of their tokens and adds up the rows' gradients, which are never written out.
`glance` reads from the same pattern what a router would make of positions that nobody answers at: all it needs
of a value there is its product with the router, a number an expert, so the stream there is not computed at all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.kernels.triton.attention import _attend, _keys_and_values, _pattern, _query
from sparsity_moves.kernels.triton.segments import ROWS, Segments, add_chunks


@triton.jit
def _weights_backward(
    projected,
    index,
    upstream,
    pattern_out,
    d_scores_out,
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
    BLOCK: tl.constexpr,
):
    """Weights and gradients of the scores, (M, B, H, P, T)."""
    m = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, TP)
    unit = head * K + tl.arange(0, K)
    keys, values, there = _keys_and_values(projected, index, B, rows, b, m, head, T, TP, H, K, True)
    for p in range(P):
        query = _query(projected, index, B, rows, b, m, head, START + p, T, H, K, True)
        pattern = _pattern(query, keys, START + p, scale, T, TP, CAUSAL)
        place = upstream + ((m * B + b) * P + p)[:, None] * (H * K) + unit[None, :]
        d_mixed = tl.load(place, mask=(b < B)[:, None], other=0.0)
        d_pattern = tl.sum(d_mixed[:, None, :] * values, axis=2)
        d_scores = pattern * (d_pattern - tl.sum(pattern * d_pattern, axis=1)[:, None]) * scale
        to = (((m * B + b) * H + head) * P + p)[:, None] * T + t[None, :]
        tl.store(pattern_out + to, pattern, mask=there)
        tl.store(d_scores_out + to, d_scores, mask=there)


@triton.jit
def _rows_by_token(
    projected,
    index,
    upstream,
    pattern,
    d_scores,
    order,
    first,
    last,
    out,
    B,
    C,
    rows,
    T: tl.constexpr,
    START: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    WIDTH: tl.constexpr,
    WP: tl.constexpr,
    HELD: tl.constexpr,
):
    """One chunk of one position: gradients of its row's query and key, and of its value.

    Without experts (E = 0) `upstream` is the mixtures' gradient (M, B, P, H·K). With them it is the scores'
    (M, B, P, E), a value is a number an expert and head, and a row has a score of its own besides.
    """
    c = tl.program_id(0)
    t = tl.program_id(1)
    m = tl.program_id(2).to(tl.int64)
    at = m * T + t
    begin = tl.load(first + at * C + c)
    end = tl.load(last + at * C + c)
    D: tl.constexpr = H * K
    unit = tl.arange(0, WP)
    head = tl.minimum(unit // K, H - 1)
    inside = unit < D
    if begin < end:
        d_query = tl.zeros((WP,), tl.float32)
        d_key = tl.zeros((WP,), tl.float32)
        d_value = tl.zeros((WP,), tl.float32)
        d_read = tl.zeros((H * EP,), tl.float32)
        d_own = tl.zeros((EP,), tl.float32)
        asked = (t >= START) & (t < START + P)
        for start in range(begin, end, HELD):
            i = start + tl.arange(0, HELD)
            here = i < end
            b = m * B + tl.load(order + at * B + i, mask=here, other=0)
            wide = here[:, None] & inside[None, :]
            for p in tl.static_range(P):
                weight = ((b[:, None] * H + head[None, :]) * P + p) * T + t
                d_score = tl.load(d_scores + weight, mask=wide, other=0.0)
                row = m * rows + tl.load(index + b * T + START + p, mask=here, other=0)
                query = tl.load(projected + row[:, None] * (3 * D) + unit[None, :], mask=wide, other=0.0)
                d_key += tl.sum(d_score * query, axis=0)
                if E == 0:
                    shown = tl.load(pattern + weight, mask=wide, other=0.0)
                    d_mixed = tl.load(
                        upstream + (b * P + p)[:, None] * D + unit[None, :], mask=wide, other=0.0
                    )
                    d_value += tl.sum(shown * d_mixed, axis=0)
                else:
                    read = tl.arange(0, H * EP)
                    e = read % EP
                    by_expert = here[:, None] & (e < E)[None, :]
                    weight = ((b[:, None] * H + (read // EP)[None, :]) * P + p) * T + t
                    shown = tl.load(pattern + weight, mask=by_expert, other=0.0)
                    d_said = tl.load(
                        upstream + (b * P + p)[:, None] * E + e[None, :], mask=by_expert, other=0.0
                    )
                    d_read += tl.sum(shown * d_said, axis=0)
            if asked:
                for s in tl.static_range(T):
                    weight = ((b[:, None] * H + head[None, :]) * P + (t - START)) * T + s
                    d_score = tl.load(d_scores + weight, mask=wide, other=0.0)
                    row = m * rows + tl.load(index + b * T + s, mask=here, other=0)
                    key = tl.load(
                        projected + row[:, None] * (3 * D) + D + unit[None, :], mask=wide, other=0.0
                    )
                    d_query += tl.sum(d_score * key, axis=0)
                if E > 0:
                    expert = tl.arange(0, EP)
                    own = here[:, None] & (expert < E)[None, :]
                    place = upstream + (b * P + t - START)[:, None] * E + expert[None, :]
                    d_own += tl.sum(tl.load(place, mask=own, other=0.0), axis=0)
        to = out + (at * C + c) * WIDTH
        tl.store(to + unit, d_query, mask=inside)
        tl.store(to + D + unit, d_key, mask=inside)
        if E == 0:
            tl.store(to + 2 * D + unit, d_value, mask=inside)
        else:
            read = tl.arange(0, H * EP)
            tl.store(to + 2 * D + (read // EP) * E + read % EP, d_read, mask=read % EP < E)
            expert = tl.arange(0, EP)
            tl.store(to + 2 * D + H * E + expert, d_own, mask=expert < E)


def _settings(length: int, start: int, positions: int, heads: int, width: int) -> dict[str, Any]:
    return {"T": length, "START": start, "P": positions, "H": heads, "K": width}


def _sums(
    projected: Tensor, index: Tensor, upstream: Tensor, pattern: Tensor, d_scores: Tensor, by: Segments,
    of: dict[str, Any], experts: int,
) -> Float[Tensor, "M S F"]:  # fmt: skip
    """Each row's gradients: query, key, and value or what was read of it."""
    models, rows, triple = projected.shape
    batch, count = index.shape[1], by.first.shape[-1]
    width = triple if experts == 0 else triple // 3 * 2 + (of["H"] + 1) * experts
    partial = projected.new_empty(models, of["T"], count, width)
    _rows_by_token[(count, of["T"], models)](
        projected, index, upstream, pattern, d_scores, by.order, by.first, by.last, partial, batch, count, rows,
        **of, E=experts, EP=triton.next_power_of_2(max(1, experts)), WIDTH=width,
        WP=triton.next_power_of_2(triple // 3), HELD=ROWS,
    )  # fmt: skip
    return add_chunks(partial, by, 0).view(models, rows, width)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        index: Tensor,
        by: Segments,
        start: int,
        positions: int,
        heads: int,
        causal: bool,
    ) -> Tensor:
        projected = projected.contiguous()
        models, rows, triple = projected.shape
        batch, length = index.shape[1:]
        width = triple // 3 // heads
        padded = triton.next_power_of_2(length)
        ctx.of, ctx.by = _settings(length, start, positions, heads, width), by
        ctx.block = max(1, 2048 // (padded * width))
        ctx.more = {"TP": padded, "CAUSAL": causal, "BLOCK": ctx.block}
        ctx.grid = (triton.cdiv(batch, ctx.block), heads, models)
        out = projected.new_empty(models, batch, positions, heads, width)
        scale = 1 / math.sqrt(width)
        _attend[ctx.grid](projected, index, out, batch, rows, scale, **ctx.of, **ctx.more, BY_TABLE=True)
        ctx.save_for_backward(projected, index)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        projected, index = ctx.saved_tensors
        models, rows, _ = projected.shape
        batch, of = index.shape[1], ctx.of
        upstream = gradients[0].contiguous()
        pattern = projected.new_empty(models, batch, of["H"], of["P"], of["T"])
        d_scores = torch.empty_like(pattern)
        scale = 1 / math.sqrt(of["K"])
        _weights_backward[ctx.grid](
            projected, index, upstream, pattern, d_scores, batch, rows, scale, **of, **ctx.more
        )
        return _sums(projected, index, upstream, pattern, d_scores, ctx.by, of, 0), *(None,) * 6


def attend(
    projected: Float[Tensor, "M S 3D"],
    index: Int[Tensor, "M B T"],
    by: Segments,
    positions: tuple[int, ...],
    heads: int,
    causal: bool,
) -> Float[Tensor, "M B P H K"]:
    """What `attention.attend` gives by table; the gradient is right for the sequences that `by` orders alone."""
    out: Tensor = _Attend.apply(projected, index, by, positions[0], len(positions), heads, causal)
    return out


@triton.jit
def _glance(
    projected,
    values,
    own,
    index,
    probabilities,
    chosen,
    B,
    rows,
    scale,
    T: tl.constexpr,
    TP: tl.constexpr,
    START: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    TOP: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(2).to(tl.int64)
    p = tl.program_id(1)
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, EP)
    here = b < B
    row = m * rows + tl.load(index + (m * B + b) * T + START + p, mask=here, other=0)
    valid = here[:, None] & (e < E)[None, :]
    s = tl.load(own + row[:, None] * E + e[None, :], mask=valid, other=0.0)
    for head in range(H):
        query = _query(projected, index, B, rows, b, m, head, START + p, T, H, K, True)
        keys, _, _ = _keys_and_values(projected, index, B, rows, b, m, head, T, TP, H, K, True)
        pattern = _pattern(query, keys, START + p, scale, T, TP, CAUSAL)
        said = _said(values, index, B, rows, b, m, head, T, TP, H, E, EP)
        s += tl.sum(pattern[:, :, None] * said, axis=1)
    s = tl.where((e < E)[None, :], s, -float("inf"))
    exponentials = tl.exp(s - tl.max(s, axis=1)[:, None])
    left = s
    picked = tl.zeros((BLOCK, EP), tl.float32)
    for _ in tl.static_range(TOP):
        best = tl.argmax(left, axis=1, tie_break_left=True)
        is_best = e[None, :] == best[:, None]
        picked = tl.where(is_best, 1.0, picked)
        left = tl.where(is_best, -float("inf"), left)
    place = ((m * B + b) * P + p)[:, None] * E + e[None, :]
    tl.store(probabilities + place, exponentials / tl.sum(exponentials, axis=1)[:, None], mask=valid)
    tl.store(chosen + place, picked, mask=valid)


@triton.jit
def _said(
    values, index, B, rows, b, m, head, T: tl.constexpr, TP: tl.constexpr, H: tl.constexpr, E: tl.constexpr,
    EP: tl.constexpr,
):  # fmt: skip
    """What the head's values say to the router: (BLOCK, TP, EP)."""
    t = tl.arange(0, TP)
    e = tl.arange(0, EP)
    there = (b < B)[:, None] & (t < T)[None, :]
    row = m * rows + tl.load(index + (m * B + b[:, None]) * T + t[None, :], mask=there, other=0)
    place = values + row[:, :, None] * (H * E) + head * E + e[None, None, :]
    return tl.load(place, mask=there[:, :, None] & (e < E)[None, None, :], other=0.0)


@triton.jit
def _glance_backward(
    projected,
    values,
    index,
    probabilities,
    d_probabilities,
    d_said,
    pattern_out,
    d_scores_out,
    B,
    rows,
    scale,
    T: tl.constexpr,
    TP: tl.constexpr,
    START: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(2).to(tl.int64)
    p = tl.program_id(1)
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, EP)
    t = tl.arange(0, TP)
    valid = (b < B)[:, None] & (e < E)[None, :]
    place = ((m * B + b) * P + p)[:, None] * E + e[None, :]
    probability = tl.load(probabilities + place, mask=valid, other=0.0)
    d = tl.load(d_probabilities + place, mask=valid, other=0.0)
    d = probability * (d - tl.sum(probability * d, axis=1)[:, None])
    tl.store(d_said + place, d, mask=valid)
    for head in range(H):
        query = _query(projected, index, B, rows, b, m, head, START + p, T, H, K, True)
        keys, _, there = _keys_and_values(projected, index, B, rows, b, m, head, T, TP, H, K, True)
        pattern = _pattern(query, keys, START + p, scale, T, TP, CAUSAL)
        said = _said(values, index, B, rows, b, m, head, T, TP, H, E, EP)
        d_pattern = tl.sum(d[:, None, :] * said, axis=2)
        d_scores = pattern * (d_pattern - tl.sum(pattern * d_pattern, axis=1)[:, None]) * scale
        to = (((m * B + b) * H + head) * P + p)[:, None] * T + t[None, :]
        tl.store(pattern_out + to, pattern, mask=there)
        tl.store(d_scores_out + to, d_scores, mask=there)


class _Glance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, own: Tensor, reading: Tensor, index: Tensor, by: Segments, start: int,
        positions: int, heads: int, causal: bool, top_k: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        projected, own, reading = projected.contiguous(), own.contiguous(), reading.contiguous()
        models, rows, triple = projected.shape
        batch, length = index.shape[1:]
        width, experts = triple // 3 // heads, own.shape[-1]
        padded = triton.next_power_of_2(length)
        by_head = projected[..., triple // 3 * 2 :].unflatten(-1, (heads, width))  # (M, S, H, K)
        values = torch.einsum("mshk,mhke->mshe", by_head, reading.unflatten(1, (heads, width))).contiguous()
        ctx.of, ctx.by = _settings(length, start, positions, heads, width), by
        block = max(1, 2048 // (padded * width))
        ctx.more = {
            "TP": padded, "CAUSAL": causal, "BLOCK": block, "E": experts, "EP": triton.next_power_of_2(experts)
        }  # fmt: skip
        ctx.grid = (triton.cdiv(batch, block), positions, models)
        probabilities = projected.new_empty(models, batch, positions, experts)
        chosen = torch.empty_like(probabilities)
        scale = 1 / math.sqrt(width)
        _glance[ctx.grid](
            projected, values, own, index, probabilities, chosen, batch, rows, scale, **ctx.of, **ctx.more, TOP=top_k
        )  # fmt: skip
        ctx.save_for_backward(projected, reading, values, index, probabilities)
        ctx.mark_non_differentiable(chosen)
        return probabilities, chosen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        projected, reading, values, index, probabilities = ctx.saved_tensors
        models, rows, triple = projected.shape
        batch, of, experts = index.shape[1], ctx.of, ctx.more["E"]
        d_said = torch.empty_like(probabilities)
        pattern = projected.new_empty(models, batch, of["H"], of["P"], of["T"])
        d_scores = torch.empty_like(pattern)
        _glance_backward[ctx.grid](
            projected, values, index, probabilities, gradients[0].contiguous(), d_said, pattern, d_scores,
            batch, rows, 1 / math.sqrt(of["K"]), **of, **ctx.more,
        )  # fmt: skip
        d_rows = _sums(projected, index, d_said, pattern, d_scores, ctx.by, of, experts)
        d_model, heads, width = triple // 3, of["H"], of["K"]
        d_values = d_rows[..., 2 * d_model : 2 * d_model + heads * experts].unflatten(-1, (heads, experts))
        by_head = projected[..., 2 * d_model :].unflatten(-1, (heads, width))
        of_head = reading.unflatten(1, (heads, width))
        d_projected = torch.empty_like(projected)
        d_projected[..., : 2 * d_model] = d_rows[..., : 2 * d_model]
        d_projected[..., 2 * d_model :] = torch.einsum("mshe,mhke->mshk", d_values, of_head).flatten(2)
        d_reading = torch.einsum("mshk,mshe->mhke", by_head, d_values).flatten(1, 2)
        return d_projected, d_rows[..., 2 * d_model + heads * experts :], d_reading, *(None,) * 7


def glance(
    projected: Float[Tensor, "M S 3D"],
    own: Float[Tensor, "M S E"],
    reading: Float[Tensor, "M D E"],
    index: Int[Tensor, "M B T"],
    by: Segments,
    positions: tuple[int, ...],
    heads: int,
    causal: bool,
    top_k: int,
) -> tuple[Float[Tensor, "M B P E"], Float[Tensor, "M B P E"]]:
    """A router's probabilities and choices at neighbouring positions whose stream nobody wants.

    Without a norm a score is linear in the stream: a table row's `own`, plus the mixture of values times `reading`,
    the attention's output matrix times the router. Of equal scores the first expert is taken.
    """
    out: tuple[Tensor, Tensor] = _Glance.apply(
        projected, own, reading, index, by, positions[0], len(positions), heads, causal, top_k
    )
    return out
