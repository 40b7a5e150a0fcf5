"""Attention by table over very short sequences that never change: its gradient, summed by token as it arises.

Going back, one pass gives the weights and the gradients of the scores, a few numbers a sequence; a second goes
through the sequences in the order of their tokens and adds up the rows' gradients, which are never written out.
`glance` reads from the same pattern what a router would make of positions that nobody answers at: all it needs
of a value there is its product with the router, a number an expert, so the stream there is not computed at all;
and of a query and a key their score, which stands in a table.
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
from sparsity_moves.kernels.triton.linear import precision
from sparsity_moves.kernels.triton.routing import same_for_all
from sparsity_moves.kernels.triton.segments import Segments, add_chunks

SEQUENCES = 1024
"""Whose scores' gradients a program adds up at once."""


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


@triton.jit(do_not_specialize=["p", "t"])
def _sum_pairs(
    d_scores, pairs, begin, pair, out, p, t, B, V, T: tl.constexpr, START: tl.constexpr, P: tl.constexpr,
    H: tl.constexpr, HP: tl.constexpr, CELLS: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """The scores' gradients of all sequences with the same tokens at p and at t: a table a head, (M, H, P·V, T·V)."""
    m = tl.program_id(1).to(tl.int64)
    two = (m * T + START + p) * T + t
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    start = tl.load(begin + two * (B + 1) + cell, mask=cell < B, other=B)
    end = tl.load(begin + two * (B + 1) + cell + 1, mask=cell < B, other=B)
    longest = tl.max(end - start, axis=0)
    if longest > 0:
        h = tl.arange(0, HP)
        total = tl.zeros((CELLS, HP), tl.float32)
        for done in range(0, longest, HELD):
            i = start[:, None] + done + tl.arange(0, HELD)[None, :]
            there = i < end[:, None]
            b = m * B + tl.load(pairs + two * B + i, mask=there, other=0)
            place = ((b[:, :, None] * H + h[None, None, :]) * P + p) * T + t
            inside = there[:, :, None] & (h < H)[None, None, :]
            total += tl.sum(tl.load(d_scores + place, mask=inside, other=0.0), axis=1)
        tokens = tl.load(pair + two * B + cell, mask=cell < B, other=0)
        row = (m * H + h)[None, :] * (P * V) + p * V + (tokens // V)[:, None]
        inside = (end > start)[:, None] & (h < H)[None, :]
        tl.store(out + row * (T * V) + t * V + (tokens % V)[:, None], total, mask=inside)


@triton.jit
def _rows_from_pairs(
    table, projected, out, S, INNER, OUTER, FROM, TO, ALONG_OUTER, ALONG_INNER, PART_IN: tl.constexpr,
    PART_OUT: tl.constexpr, H: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
    HELD: tl.constexpr,
):  # fmt: skip
    """One head's table times its queries or keys: the gradient of its keys or queries."""
    head = tl.program_id(1)
    m = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    unit = head * K + tl.arange(0, K)
    total = tl.zeros((BLOCK, K), tl.float32)
    own = table + (m * H + head) * INNER * OUTER
    for start in range(0, INNER, HELD):
        column = start + tl.arange(0, HELD)
        inside = (row < OUTER)[:, None] & (column < INNER)[None, :]
        d = tl.load(own + row[:, None] * ALONG_OUTER + column[None, :] * ALONG_INNER, mask=inside, other=0.0)
        place = projected + (m * S + FROM + column)[:, None] * (3 * H * K) + PART_IN * H * K + unit[None, :]
        total += tl.dot(
            d, tl.load(place, mask=(column < INNER)[:, None], other=0.0), input_precision=PRECISION
        )
    to = out + (m * S + TO + row)[:, None] * (3 * H * K) + PART_OUT * H * K + unit[None, :]
    tl.store(to, total, mask=(row < OUTER)[:, None])


@triton.jit
def _values_by_token(
    upstream, pattern, order, first, last, out, B, C, T: tl.constexpr, P: tl.constexpr, H: tl.constexpr,
    HP: tl.constexpr, K: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """One chunk of one position: the gradient of its row's value."""
    t = tl.program_id(1)
    m = tl.program_id(2).to(tl.int64)
    at = m * T + t
    chunk = at * C + tl.program_id(0)
    begin = tl.load(first + chunk)
    end = tl.load(last + chunk)
    h = tl.arange(0, HP)
    unit = h[:, None] * K + tl.arange(0, K)[None, :]
    if begin < end:
        total = tl.zeros((HELD, HP, K), tl.float32)
        for start in range(begin, end, HELD):
            i = start + tl.arange(0, HELD)
            b = m * B + tl.load(order + at * B + i, mask=i < end, other=0)
            there = (i < end)[:, None] & (h < H)[None, :]
            for p in tl.static_range(P):
                place = pattern + ((b[:, None] * H + h[None, :]) * P + p) * T + t
                weight = tl.load(place, mask=there, other=0.0)
                row = upstream + (b * P + p)[:, None, None] * (H * K) + unit[None]
                total += weight[:, :, None] * tl.load(row, mask=there[:, :, None], other=0.0)
        tl.store(out + chunk * (H * K) + unit, tl.sum(total, axis=0), mask=(h < H)[:, None])


@triton.jit
def _readings_by_token(
    d_said, pattern, order, first, last, out, B, C, T: tl.constexpr, START: tl.constexpr, P: tl.constexpr,
    H: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """One chunk of one position: the gradient of what its row's values say to the router, head by head, and of what
    the row says itself."""
    t = tl.program_id(1)
    m = tl.program_id(2).to(tl.int64)
    at = m * T + t
    chunk = at * C + tl.program_id(0)
    begin = tl.load(first + chunk)
    end = tl.load(last + chunk)
    expert = tl.arange(0, EP)
    if begin < end:
        place = out + chunk * ((H + 1) * E) + expert
        for head in tl.static_range(H):
            total = tl.zeros((EP,), tl.float32)
            for start in range(begin, end, HELD):
                i = start + tl.arange(0, HELD)
                b = m * B + tl.load(order + at * B + i, mask=i < end, other=0)
                for p in tl.static_range(P):
                    weight = tl.load(pattern + ((b * H + head) * P + p) * T + t, mask=i < end, other=0.0)
                    inside = (i < end)[:, None] & (expert < E)[None, :]
                    d = tl.load(d_said + (b * P + p)[:, None] * E + expert[None, :], mask=inside, other=0.0)
                    total += tl.sum(weight[:, None] * d, axis=0)
            tl.store(place + head * E, total, mask=expert < E)
        own = tl.zeros((EP,), tl.float32)
        if (t >= START) & (t < START + P):
            for start in range(begin, end, HELD):
                i = start + tl.arange(0, HELD)
                b = m * B + tl.load(order + at * B + i, mask=i < end, other=0)
                inside = (i < end)[:, None] & (expert < E)[None, :]
                of_row = d_said + (b * P + t - START)[:, None] * E + expert[None, :]
                own += tl.sum(tl.load(of_row, mask=inside, other=0.0), axis=0)
        tl.store(place + H * E, own, mask=expert < E)


def _settings(length: int, start: int, positions: int, heads: int, width: int) -> dict[str, Any]:
    return {"T": length, "START": start, "P": positions, "H": heads, "K": width}


def _queries_and_keys(
    projected: Float[Tensor, "M S 3D"], d_scores: Float[Tensor, "M B H P T"], by: Segments, of: dict[str, Any],
    causal: bool, out: Float[Tensor, "M S 3D"],
) -> None:  # fmt: skip
    """Write the gradients of queries and keys; queries that nobody asked are left alone.

    A score depends on two tokens alone, so its gradients are summed to a table of them first: the rest is products
    of tables.
    """
    models, batch, heads, positions, length = d_scores.shape
    rows = projected.shape[1]
    vocabulary = rows // length
    table = d_scores.new_zeros(models, heads, positions * vocabulary, length * vocabulary)
    for p in range(positions):
        asking = of["START"] + p
        for t in range(asking + 1 if causal else length):
            # Few pairs with many sequences, or many with few: a program holds so many of them either way.
            held = min(SEQUENCES, triton.next_power_of_2(by.longest[asking][t]))
            cells = SEQUENCES // held
            _sum_pairs[(triton.cdiv(by.different[asking][t], cells), models)](
                d_scores, by.pairs, by.begin, by.pair, table, p, t, batch, vocabulary, T=length, START=of["START"],
                P=positions, H=heads, HP=triton.next_power_of_2(heads), CELLS=cells, HELD=held,
            )  # fmt: skip
    asked, seen, start = positions * vocabulary, rows, of["START"] * vocabulary
    common = {"H": heads, "K": of["K"], "PRECISION": precision(), "BLOCK": 64, "HELD": 64}
    _rows_from_pairs[(triton.cdiv(asked, 64), heads, models)](
        table, projected, out, rows, seen, asked, 0, start, seen, 1, PART_IN=1, PART_OUT=0, **common
    )  # fmt: skip
    _rows_from_pairs[(triton.cdiv(seen, 64), heads, models)](
        table, projected, out, rows, asked, seen, start, 0, 1, seen, PART_IN=0, PART_OUT=1, **common
    )  # fmt: skip


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
        d_projected = torch.zeros_like(projected)
        _queries_and_keys(projected, d_scores, ctx.by, of, ctx.more["CAUSAL"], d_projected)
        count, d_model = ctx.by.first.shape[-1], of["H"] * of["K"]
        partial = projected.new_empty(models, of["T"], count, d_model)
        _values_by_token[(count, of["T"], models)](
            upstream, pattern, ctx.by.order, ctx.by.first, ctx.by.last, partial, batch, count, T=of["T"], P=of["P"],
            H=of["H"], HP=triton.next_power_of_2(of["H"]), K=of["K"], HELD=8, num_warps=1,
        )  # fmt: skip
        add_chunks(partial, ctx.by.chunks, 0, d_projected[..., 2 * d_model :].unflatten(1, (of["T"], -1)))
        return d_projected, *(None,) * 6


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
def _said(
    values, seen, there, H: tl.constexpr, HP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """What the heads' values of the rows seen, (BLOCK, TP), say to the router: (BLOCK, HP, TP, EP)."""
    h = tl.arange(0, HP)[None, :, None, None]
    e = tl.arange(0, EP)[None, None, None, :]
    place = values + (seen[:, None, :, None] * H + h) * E + e
    return tl.load(place, mask=there[:, None, :, None] & (h < H) & (e < E), other=0.0)


@triton.jit
def _glance(
    scores,
    values,
    own,
    index,
    pattern,
    probabilities,
    chosen,
    B,
    rows,
    scale,
    START: tl.constexpr,
    TOP: tl.constexpr,
    CAUSAL: tl.constexpr,
    T: tl.constexpr,
    TP: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A few positions of sequences, with all heads: weights (M, B, H, P, T), probabilities and choices."""
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = m * B + n // P
    p = n % P
    t, h, e = tl.arange(0, TP), tl.arange(0, HP), tl.arange(0, EP)
    here = n < B * P
    there = here[:, None] & (t < T)[None, :]
    seen = tl.load(index + b[:, None] * T + t[None, :], mask=there, other=0)
    asking = tl.load(index + b * T + START + p, mask=here, other=0)
    query = (m * H + h)[None, :] * (rows // T * P) + (asking - rows // T * START)[:, None]
    inside = there[:, None, :] & (h < H)[None, :, None]
    score = tl.load(scores + query[:, :, None] * rows + seen[:, None, :], mask=inside, other=0.0) * scale
    hidden = (t >= T)[None, :]
    if CAUSAL:
        hidden = hidden | (t[None, :] > START + p[:, None])
    score = tl.where(hidden[:, None, :], -float("inf"), score)
    weights = tl.exp(score - tl.max(score, axis=2)[:, :, None])
    weights = weights / tl.sum(weights, axis=2)[:, :, None]
    place = ((b[:, None] * H + h[None, :]) * P + p[:, None])[:, :, None] * T + t[None, None, :]
    tl.store(pattern + place, weights, mask=inside)
    said = _said(values, m * rows + seen, there, H, HP, E, EP)
    valid = here[:, None] & (e < E)[None, :]
    s = tl.load(own + (m * rows + asking)[:, None] * E + e[None, :], mask=valid, other=0.0)
    s += tl.sum(tl.sum(weights[:, :, :, None] * said, axis=2), axis=1)
    s = tl.where((e < E)[None, :], s, -float("inf"))
    exponentials = tl.exp(s - tl.max(s, axis=1)[:, None])
    left = tl.where(s == s, s, 0.0)  # as in `routing`
    picked = tl.zeros((BLOCK, EP), tl.float32)
    for _ in tl.static_range(TOP):
        best = tl.argmax(left, axis=1, tie_break_left=True)
        is_best = e[None, :] == best[:, None]
        picked = tl.where(is_best, 1.0, picked)
        left = tl.where(is_best, -float("inf"), left)
    to = (b * P + p)[:, None] * E + e[None, :]
    tl.store(probabilities + to, exponentials / tl.sum(exponentials, axis=1)[:, None], mask=valid)
    tl.store(chosen + to, picked, mask=valid)


@triton.jit
def _glance_backward(
    values,
    index,
    pattern,
    probabilities,
    d_probabilities,
    d_said,
    d_scores,
    B,
    rows,
    scale,
    EVEN: tl.constexpr,
    T: tl.constexpr,
    TP: tl.constexpr,
    P: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients of what is said, (M, B, P, E), and of the scores, (M, B, H, P, T)."""
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = m * B + n // P
    p = n % P
    t, h, e = tl.arange(0, TP), tl.arange(0, HP), tl.arange(0, EP)
    here = n < B * P
    valid = here[:, None] & (e < E)[None, :]
    to = (b * P + p)[:, None] * E + e[None, :]
    probability = tl.load(probabilities + to, mask=valid, other=0.0)
    if EVEN:
        d = tl.load(d_probabilities + m * E + e, mask=e < E, other=0.0)[None, :]
    else:
        d = tl.load(d_probabilities + to, mask=valid, other=0.0)
    d = probability * (d - tl.sum(probability * d, axis=1)[:, None])
    tl.store(d_said + to, d, mask=valid)
    there = here[:, None] & (t < T)[None, :]
    seen = tl.load(index + b[:, None] * T + t[None, :], mask=there, other=0)
    said = _said(values, m * rows + seen, there, H, HP, E, EP)
    d_weights = tl.sum(d[:, None, None, :] * said, axis=3)
    place = ((b[:, None] * H + h[None, :]) * P + p[:, None])[:, :, None] * T + t[None, None, :]
    inside = there[:, None, :] & (h < H)[None, :, None]
    weights = tl.load(pattern + place, mask=inside, other=0.0)
    d_score = weights * (d_weights - tl.sum(weights * d_weights, axis=2)[:, :, None]) * scale
    tl.store(d_scores + place, d_score, mask=inside)


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
        query, key, value = projected.unflatten(-1, (3, heads, width)).unbind(2)  # (M, S, H, K)
        values = torch.einsum("mshk,mhke->mshe", value, reading.unflatten(1, (heads, width))).contiguous()
        # A score depends on two rows alone, so there are few, and many sequences look each of them up.
        asking = query.unflatten(1, (length, -1))[:, start : start + positions].flatten(1, 2)
        scores = torch.einsum("mqhk,mshk->mhqs", asking, key).contiguous()
        ctx.of, ctx.by, ctx.causal = _settings(length, start, positions, heads, width), by, causal
        padded = {"TP": length, "HP": heads, "EP": experts}
        padded = {name: triton.next_power_of_2(size) for name, size in padded.items()}
        block = max(1, 4096 // math.prod(padded.values()))
        ctx.more = {"T": length, "P": positions, "H": heads, "E": experts, "BLOCK": block, **padded}
        ctx.grid = (triton.cdiv(batch * positions, block), models)
        probabilities = projected.new_empty(models, batch, positions, experts)
        chosen = torch.empty_like(probabilities)
        pattern = projected.new_empty(models, batch, heads, positions, length)
        _glance[ctx.grid](
            scores, values, own, index, pattern, probabilities, chosen, batch, rows, 1 / math.sqrt(width),
            START=start, TOP=top_k, CAUSAL=causal, **ctx.more,
        )  # fmt: skip
        ctx.save_for_backward(projected, reading, values, index, pattern, probabilities)
        ctx.mark_non_differentiable(chosen)
        return probabilities, chosen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        projected, reading, values, index, pattern, probabilities = ctx.saved_tensors
        models, rows, triple = projected.shape
        batch, of, experts = index.shape[1], ctx.of, ctx.more["E"]
        d_said = torch.empty_like(probabilities)
        d_scores = torch.empty_like(pattern)
        d_probabilities, even = same_for_all(gradients[0])
        _glance_backward[ctx.grid](
            values, index, pattern, probabilities, d_probabilities, d_said, d_scores, batch, rows,
            1 / math.sqrt(of["K"]), EVEN=even, **ctx.more,
        )  # fmt: skip
        d_projected = torch.zeros_like(projected)
        _queries_and_keys(projected, d_scores, ctx.by, of, ctx.causal, d_projected)
        count, d_model, heads, width = ctx.by.first.shape[-1], triple // 3, of["H"], of["K"]
        partial = projected.new_empty(models, of["T"], count, (heads + 1) * experts)
        _readings_by_token[(count, of["T"], models)](
            d_said, pattern, ctx.by.order, ctx.by.first, ctx.by.last, partial, batch, count, T=of["T"],
            START=of["START"], P=of["P"], H=heads, E=experts, EP=ctx.more["EP"], HELD=64, num_warps=1,
        )  # fmt: skip
        d_rows = add_chunks(partial, ctx.by.chunks, 0).view(models, rows, heads + 1, experts)
        d_values, d_own = d_rows[:, :, :heads], d_rows[:, :, heads]
        by_head = projected[..., 2 * d_model :].unflatten(-1, (heads, width))
        of_head = reading.unflatten(1, (heads, width))
        d_projected[..., 2 * d_model :] = torch.einsum("mshe,mhke->mshk", d_values, of_head).flatten(2)
        d_reading = torch.einsum("mshk,mshe->mhke", by_head, d_values).flatten(1, 2)
        return d_projected, d_own, d_reading, *(None,) * 7


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
