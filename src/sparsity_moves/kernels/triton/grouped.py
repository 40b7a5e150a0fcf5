"""Only the open experts: tokens in the order of their expert, a few at a time through the whole of it.

A program takes the tokens of one chunk to their output without writing a hidden unit; going back it computes the
hidden units again, and writes them and their gradients once, for the matrices' gradients. A dense layer of E
times the width moves E / k times as much; by itself it is one expert, open to all. Sums run in a fixed order.

Where products may round their factors to ten bits of mantissa (TF32), these are held in fp16, which has ten bits too:
half as much to move, twice the rate, and any layout will do. What fp16 lacks is range. So a chunk's gradients
are first multiplied by the power of two that brings their largest to `LARGEST`, hidden units and their gradients
by one that keeps them under `MOST` where they could be over it, and the sums divided by these. How large they could
be the lengths tell: no product of a token and a unit's weights is larger than that of their lengths (Cauchy and
Schwarz), and no activation is further from zero than what it is of. There GELU's distribution is a polynomial in
the square of its argument, held where it is 0 or 1 to fp32's bits or nearly so; ten bits do not tell the difference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.kernels.forms import in_one_pass
from sparsity_moves.kernels.precision import ten_bits
from sparsity_moves.kernels.triton.feedforward import CODES, _phi, _phi_slope, masked
from sparsity_moves.kernels.triton.linear import LARGEST, PROGRAMS, _magnified, padded, precision
from sparsity_moves.kernels.triton.segments import add_chunks
from sparsity_moves.model.architecture import FeedForward, Parameters
from sparsity_moves.model.routing import Routing

TILE = 128
"""Rows and columns of a matrix's gradient that a program sums."""
MOST = tl.constexpr(32768.0)
"""Up to this, numbers go to fp16 as they are; its own largest is 65,504."""


class Dispatch(NamedTuple):
    """Every model's assignments in the order of their expert, cut into chunks of one expert's."""

    order: Int[Tensor, "M A"]
    """Assignment: token · k + how many of the token's experts come before this one."""
    chunks: Int[Tensor, "M E_and_one"]
    """Expert e's chunks are chunks[e] to chunks[e + 1] - 1."""
    first: Int[Tensor, "M C"]
    last: Int[Tensor, "M C"]
    expert: Int[Tensor, "M C"]


@triton.jit
def _dispatch(
    chosen, order, chunks, first, last, expert, N, C, E: tl.constexpr, EP: tl.constexpr, TOP: tl.constexpr,
    CP: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mine = tl.program_id(0)
    m = tl.program_id(1).to(tl.int64)
    e = tl.arange(0, EP)
    counts = tl.zeros((EP,), tl.int32)
    for start in range(0, N, BLOCK):
        n = start + tl.arange(0, BLOCK)
        tile = tl.load(
            chosen + (m * N + n)[:, None] * E + e[None, :], mask=(n < N)[:, None] & (e < E)[None, :], other=0
        )
        counts += tl.sum(tile.to(tl.int32), axis=0)
    begins = tl.cumsum(counts, 0) - counts
    place = tl.sum(tl.where(e == mine, begins, 0), axis=0)
    for start in range(0, N, BLOCK):
        n = start + tl.arange(0, BLOCK)
        tile = tl.load(
            chosen + (m * N + n)[:, None] * E + e[None, :], mask=(n < N)[:, None] & (e < E)[None, :], other=0
        )
        tile = tile.to(tl.int32)
        own = tl.sum(tl.where(e[None, :] == mine, tile, 0), axis=1)
        slot = tl.sum(tl.where(e[None, :] < mine, tile, 0), axis=1)
        to = place + tl.cumsum(own, 0) - own
        tl.store(order + m * N * TOP + to, n * TOP + slot, mask=own == 1)
        place += tl.sum(own, axis=0)
    if mine == 0:
        wanted = (counts + CHUNK - 1) // CHUNK
        until = tl.cumsum(wanted, 0)
        tl.store(chunks + m * (E + 1) + e, until - wanted, mask=e < E)
        tl.store(chunks + m * (E + 1) + e + 1, until, mask=e == E - 1)
        c = tl.arange(0, CP)
        whose = tl.minimum(tl.sum((until[None, :] <= c[:, None]).to(tl.int32), axis=1), E - 1)
        is_whose = e[None, :] == whose[:, None]
        number = c - tl.sum(tl.where(is_whose, (until - wanted)[None, :], 0), axis=1)
        begin = tl.sum(tl.where(is_whose, begins[None, :], 0), axis=1)
        count = tl.sum(tl.where(is_whose, counts[None, :], 0), axis=1)
        from_here = tl.minimum(number * CHUNK, count)
        tl.store(first + m * C + c, begin + from_here, mask=c < C)
        tl.store(last + m * C + c, begin + tl.minimum(from_here + CHUNK, count), mask=c < C)
        tl.store(expert + m * C + c, whose, mask=c < C)


def dispatch(chosen: Float[Tensor, "M N E"], top_k: int, chunk: int) -> Dispatch:
    """Chunks of at most so many assignments, from who chose whom; each token has k experts."""
    models, tokens, experts = chosen.shape
    count = experts + triton.cdiv(tokens * top_k, chunk)
    sizes = (tokens * top_k, experts + 1, count, count, count)
    parts = [chosen.new_empty(models, size, dtype=torch.int32) for size in sizes]
    _dispatch[(experts, models)](
        chosen.contiguous(), *parts, tokens, count, E=experts, EP=triton.next_power_of_2(experts), TOP=top_k,
        CP=triton.next_power_of_2(count), CHUNK=chunk, BLOCK=1024,
    )  # fmt: skip
    return Dispatch(*parts)


def of_one(x: Float[Tensor, "M N D"], chunk: int) -> Dispatch:
    """The chunks of a dense layer: one expert, open to every token."""
    models, tokens = x.shape[:2]
    count = triton.cdiv(tokens, chunk)
    order = torch.arange(tokens, dtype=torch.int32, device=x.device)
    first = torch.arange(0, tokens, chunk, dtype=torch.int32, device=x.device)
    chunks = torch.arange(2, dtype=torch.int32, device=x.device) * count
    parts = (order, chunks, first, (first + chunk).clamp(max=tokens), torch.zeros_like(first))
    return Dispatch(*(part.expand(models, -1).contiguous() for part in parts))


@triton.jit
def _below(x):
    """The normal distribution's share below x, within 1.5e-6, and to fp32's bits from 4.7 on either side."""
    inner = tl.minimum(tl.maximum(x, -4.7), 4.7)
    v = inner * inner * 0.090538705 - 1.0
    odd = 0.00139929572 * v - 0.0036094411
    odd = ((odd * v + 0.00414081417) * v - 0.00646405338) * v + 0.0132660415
    odd = ((odd * v - 0.0213464982) * v + 0.0299771257) * v - 0.0404915371
    odd = ((odd * v + 0.05356123) * v - 0.0743646194) * v + 0.150314621
    return inner * odd + 0.5


@triton.jit
def _bent(x, ACT: tl.constexpr, HALF: tl.constexpr):
    """φ of x and its slope."""
    if HALF and ACT == 3:
        below = _below(x)
        density = tl.exp2(-0.72134752 * x * x - 1.3257480647)
        y, slope = x * below, below + x * density
    else:
        y, slope = _phi(x, ACT), _phi_slope(x, ACT)
    return y, slope


@triton.jit
def _fitting(bound):
    """The power of two that brings numbers up to a bound under `MOST`; one where they are, or are infinite."""
    over = (bound > MOST) & (bound < float("inf"))
    return tl.where(over, tl.exp2(tl.floor(-tl.log2(bound / MOST))), 1.0)


@triton.jit
def _of_units(values, e, W: tl.constexpr, WP: tl.constexpr):
    """The largest of one expert's values, one a unit."""
    unit = tl.arange(0, WP)
    return tl.max(tl.abs(tl.load(values + e * W + unit, mask=unit < W, other=0.0)), axis=0)


@triton.jit
def _round(
    w, out, lengths, STRIDE, COUNT, SIZE: tl.constexpr, SP: tl.constexpr, ALONG: tl.constexpr, STEP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A matrix in fp16, and its rows' or columns' lengths."""
    m = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, SP)
    inside = (i < COUNT)[:, None] & (j < SIZE)[None, :]
    place = i[:, None] * STEP + j[None, :] * ALONG
    x = tl.load(w + m * STRIDE + place, mask=inside, other=0.0)
    tl.store(out + m * COUNT * SIZE + place, x, mask=inside)
    tl.store(lengths + m * COUNT + i, tl.sqrt(tl.sum(x * x, axis=1)), mask=i < COUNT)


def rounded(
    w: Float[Tensor, "M A B"], by_row: bool
) -> tuple[Float[Tensor, "M A B"], Float[Tensor, "M A_or_B"]]:
    """Matrices in fp16, and the length of each row or column."""
    w = w if w[0].is_contiguous() else w.contiguous()
    models, count, size = w.shape if by_row else (w.shape[0], *w.shape[:0:-1])
    out = torch.empty(w.shape, dtype=torch.float16, device=w.device)
    lengths = w.new_empty(models, count)
    along, step = (1, size) if by_row else (count, 1)
    _round[(triton.cdiv(count, 32), models)](
        w, out, lengths, w.stride(0), count, SIZE=size, SP=triton.next_power_of_2(size), ALONG=along, STEP=step,
        BLOCK=32,
    )  # fmt: skip
    return out, lengths


@triton.jit
def _through(
    x,
    lengths,
    onto,
    in_t,
    up_t,
    b_in,
    out_t,
    b_out,
    gates,
    order,
    first,
    last,
    expert,
    lengths_in,
    lengths_up,
    y,
    N,
    C,
    E: tl.constexpr,
    TOP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    W: tl.constexpr,
    WP: tl.constexpr,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BIASED: tl.constexpr,
    WEIGHED: tl.constexpr,
    ADDED: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """One chunk's outputs, a row an assignment, with `onto` where it is ADDED. Matrices come turned; with HALF they
    and x come in fp16, and as they are."""
    m = tl.program_id(1).to(tl.int64)
    c = m * C + tl.program_id(0)
    begin = tl.load(first + c)
    end = tl.load(last + c)
    if begin < end:
        e = tl.load(expert + c)
        i = begin + tl.arange(0, CHUNK)
        here = i < end
        assigned = tl.load(order + m * N * TOP + i, mask=here, other=0)
        n = m * N + assigned // TOP
        d = tl.arange(0, DP)
        wide = here[:, None] & (d < D)[None, :]
        tile = tl.load(x + n[:, None] * D + d[None, :], mask=wide, other=0.0)
        out = tl.zeros((CHUNK, DP), tl.float32)
        fitting = 1.0
        if HALF:
            length = tl.max(tl.load(lengths + n, mask=here, other=0.0), axis=0)
            bound = length * _of_units(lengths_in + m * E * W, e, W, WP)
            if BIASED:
                bound += _of_units(b_in + m * E * W, e, W, WP)
            if GATED:
                bound *= length * _of_units(lengths_up + m * E * W, e, W, WP)
            fitting = _fitting(bound)
        for start in range(0, W, SLICE):
            unit = start + tl.arange(0, SLICE)
            inside = unit < W
            if HALF:
                across = m * (D * E * W) + d[:, None] * (E * W) + e * W + unit[None, :]
                sides = (d < D)[:, None] & inside[None, :]
                into = tl.load(in_t + across, mask=sides, other=0.0)
            else:
                across = ((m * E + e) * W + unit)[:, None] * D + d[None, :]
                sides = inside[:, None] & (d < D)[None, :]
                into = tl.trans(tl.load(in_t + across, mask=sides, other=0.0))
            h = tl.dot(tile, into, input_precision=PRECISION)
            if BIASED:
                h += tl.load(b_in + (m * E + e) * W + unit, mask=inside, other=0.0)[None, :]
            h, _ = _bent(h, ACT, HALF)
            if GATED:
                up_into = tl.load(up_t + across, mask=sides, other=0.0)
                h *= tl.dot(tile, up_into if HALF else tl.trans(up_into), input_precision=PRECISION)
            if HALF:
                down = out_t + ((m * E + e) * W + unit)[:, None] * D + d[None, :]
                back = tl.load(down, mask=inside[:, None] & (d < D)[None, :], other=0.0)
                out += tl.dot((h * fitting).to(tl.float16), back)
            else:
                down = out_t + m * (D * E * W) + d[:, None] * (E * W) + e * W + unit[None, :]
                back = tl.load(down, mask=(d < D)[:, None] & inside[None, :], other=0.0)
                out += tl.dot(h, tl.trans(back), input_precision=PRECISION)
        if HALF:
            out /= fitting
        if BIASED:
            out += tl.load(b_out + (m * E + e) * D + d, mask=d < D, other=0.0)[None, :]
        if WEIGHED:
            out *= tl.load(gates + n * E + e, mask=here, other=0.0)[:, None]
        if ADDED:
            out += tl.load(onto + n[:, None] * D + d[None, :], mask=wide, other=0.0)
        tl.store(y + (m * N * TOP + assigned)[:, None] * D + d[None, :], out, mask=wide)


@triton.jit
def _back(
    x,
    lengths,
    w_in,
    w_up,
    in_t,
    up_t,
    b_in,
    w_out,
    b_out,
    gates,
    order,
    first,
    last,
    expert,
    lengths_in,
    lengths_up,
    lengths_out,
    upstream,
    x_t,
    upstream_t,
    hidden_t,
    d_before_t,
    d_up_t,
    d_bias,
    d_out_bias,
    d_gates,
    d_x,
    of_hidden,
    of_gradients,
    N,
    C,
    E: tl.constexpr,
    TOP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    W: tl.constexpr,
    WP: tl.constexpr,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BIASED: tl.constexpr,
    WEIGHED: tl.constexpr,
    ADDED: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    SLICE: tl.constexpr,
):
    """One chunk's gradients, a row an assignment. What the matrices' gradients are products of is written turned, a
    column an assignment, CHUNK columns a chunk: those past its end have no gradient. With HALF it is written in
    fp16, a row an assignment, and a number a chunk says by what products of hidden units are to be multiplied:
    `of_hidden` theirs with `upstream_t`, `of_gradients` their gradients' with `x_t`."""
    m = tl.program_id(1).to(tl.int64)
    c = m * C + tl.program_id(0)
    begin = tl.load(first + c)
    end = tl.load(last + c)
    if begin < end:
        e = tl.load(expert + c)
        i = begin + tl.arange(0, CHUNK)
        here = i < end
        assigned = tl.load(order + m * N * TOP + i, mask=here, other=0)
        n = m * N + assigned // TOP
        d = tl.arange(0, DP)
        wide = here[:, None] & (d < D)[None, :]
        tile = tl.load(x + n[:, None] * D + d[None, :], mask=wide, other=0.0)
        dy = tl.load(upstream + n[:, None] * D + d[None, :], mask=wide, other=0.0)
        d_tile = tl.zeros((CHUNK, DP), tl.float32)
        r = tl.arange(0, CHUNK).to(tl.int64)
        row = ((m * C + tl.program_id(0)) * CHUNK + r)[:, None]
        column = (tl.program_id(0) * CHUNK + r)[:, None]
        if WEIGHED:
            gate = tl.load(gates + n * E + e, mask=here, other=0.0)
            d_gate = tl.zeros((CHUNK,), tl.float32)
            if BIASED:
                bias = tl.load(b_out + (m * E + e) * D + d, mask=d < D, other=0.0)
                d_gate += tl.sum(dy * bias[None, :], axis=1)
        if BIASED:
            of_bias = tl.sum(dy * gate[:, None] if WEIGHED else dy, axis=0)
            tl.store(d_out_bias + c * D + d, of_bias, mask=d < D)
        smaller = 1.0
        if HALF:
            dy, smaller = _magnified(dy)
            tl.store(x_t + row * D + d[None, :], tile, mask=(d < D)[None, :])
            tl.store(upstream_t + row * D + d[None, :], dy, mask=(d < D)[None, :])
            length = tl.max(tl.load(lengths + n, mask=here, other=0.0), axis=0)
            bound = length * _of_units(lengths_in + m * E * W, e, W, WP)
            bound_back = LARGEST * tl.sqrt(D * 1.0) * _of_units(lengths_out + m * E * W, e, W, WP)
            if BIASED:
                bound += _of_units(b_in + m * E * W, e, W, WP)
            if WEIGHED:
                bound_back *= tl.max(tl.abs(gate), axis=0)
            # No slope is larger than 1.13, which the room between MOST and fp16's own largest takes.
            if GATED:
                bound_up = length * _of_units(lengths_up + m * E * W, e, W, WP)
                bound_back *= tl.maximum(bound, bound_up)
                bound *= bound_up
            if WEIGHED:
                bound *= tl.max(tl.abs(gate), axis=0)
            fitting = _fitting(bound)
            fitting_back = _fitting(bound_back)
            tl.store(of_hidden + c, smaller / fitting)
            tl.store(of_gradients + c, smaller / fitting_back)
        else:
            turned_d = (m * D + d)[None, :] * (C * CHUNK) + column
            tl.store(x_t + turned_d, tile, mask=(d < D)[None, :])
            tl.store(upstream_t + turned_d, dy, mask=(d < D)[None, :])
        for start in range(0, W, SLICE):
            unit = start + tl.arange(0, SLICE)
            inside = unit < W
            across = m * (D * E * W) + d[:, None] * (E * W) + e * W + unit[None, :]
            sides = (d < D)[:, None] & inside[None, :]
            inwards = ((m * E + e) * W + unit)[:, None] * D + d[None, :]
            turned = inside[:, None] & (d < D)[None, :]
            into = tl.load(w_in + across, mask=sides, other=0.0)
            if HALF:
                before = tl.dot(tile, into)
            else:
                into_t = tl.load(in_t + inwards, mask=turned, other=0.0)
                before = tl.dot(tile, tl.trans(into_t), input_precision=PRECISION)
            if BIASED:
                before += tl.load(b_in + (m * E + e) * W + unit, mask=inside, other=0.0)[None, :]
            h, slope = _bent(before, ACT, HALF)
            back = tl.load(w_out + inwards, mask=turned, other=0.0)
            d_h = tl.dot(dy, tl.trans(back), input_precision=PRECISION)
            if HALF:
                to = row * W + unit[None, :]
            else:
                to = (m * W + unit)[None, :] * (C * CHUNK) + column
            if GATED:
                up_into = tl.load(w_up + across, mask=sides, other=0.0)
                if HALF:
                    up = tl.dot(tile, up_into)
                else:
                    up_into_t = tl.load(up_t + inwards, mask=turned, other=0.0)
                    up = tl.dot(tile, tl.trans(up_into_t), input_precision=PRECISION)
                if WEIGHED:
                    d_gate += tl.sum(d_h * h * up, axis=1) * smaller
                    d_h *= gate[:, None]
                d_u = d_h * h
                h *= up
                d_b = d_h * up * slope
            else:
                if WEIGHED:
                    d_gate += tl.sum(d_h * h, axis=1) * smaller
                    d_h *= gate[:, None]
                d_b = d_h * slope
            if WEIGHED:
                h *= gate[:, None]
            if BIASED:
                tl.store(d_bias + c * W + unit, tl.sum(d_b, axis=0) * smaller, mask=inside)
            if HALF:
                h = (h * fitting).to(tl.float16)
                if GATED:
                    d_u = (d_u * fitting_back).to(tl.float16)
                d_b = (d_b * fitting_back).to(tl.float16)
            if GATED:
                tl.store(d_up_t + to, d_u, mask=inside[None, :])
                d_tile += tl.dot(d_u, tl.trans(up_into), input_precision=PRECISION)
            tl.store(hidden_t + to, h, mask=inside[None, :])
            tl.store(d_before_t + to, d_b, mask=inside[None, :])
            d_tile += tl.dot(d_b, tl.trans(into), input_precision=PRECISION)
        if WEIGHED:
            tl.store(d_gates + n * E + e, d_gate, mask=here)
        if HALF:
            d_tile *= smaller / fitting_back
        if ADDED:
            d_tile += tl.load(upstream + n[:, None] * D + d[None, :], mask=wide, other=0.0)
        tl.store(d_x + (m * N * TOP + assigned)[:, None] * D + d[None, :], d_tile, mask=wide)


@triton.jit
def _matrix(
    tokens_t,
    units_t,
    chunks,
    unscale,
    out,
    C,
    E: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    ALONG_D: tl.constexpr,
    ALONG_W: tl.constexpr,
    OF_EXPERT: tl.constexpr,
    PARTS: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
    HELD: tl.constexpr,
):
    """Part of one expert's tokensᵀ units, (D, W)."""
    across: tl.constexpr = (W + BLOCK_W - 1) // BLOCK_W
    d = tl.program_id(0) // across * BLOCK_D + tl.arange(0, BLOCK_D)
    w = tl.program_id(0) % across * BLOCK_W + tl.arange(0, BLOCK_W)
    e = tl.program_id(1)
    m = (tl.program_id(2) // PARTS).to(tl.int64)
    part = tl.program_id(2) % PARTS
    begin = tl.load(chunks + m * (E + 1) + e)
    end = tl.load(chunks + m * (E + 1) + e + 1)
    share = (end - begin + PARTS - 1) // PARTS
    begin += part * share
    end = tl.minimum(begin + share, end)
    total = tl.zeros((BLOCK_D, BLOCK_W), tl.float32)
    held = tl.arange(0, HELD)
    for start in range(begin * CHUNK, end * CHUNK, HELD):
        if HALF:
            row = (m * C * CHUNK + start + held).to(tl.int64)[:, None]
            t = tl.load(tokens_t + row * D + d[None, :], mask=(d < D)[None, :], other=0.0)
            u = tl.load(units_t + row * W + w[None, :], mask=(w < W)[None, :], other=0.0)
            total += tl.dot(tl.trans(t), u) * tl.load(unscale + m * C + start // CHUNK)
        else:
            place = tokens_t + (m * D + d)[:, None] * (C * CHUNK) + start + held[None, :]
            t = tl.load(place, mask=(d < D)[:, None], other=0.0)
            place = units_t + (m * W + w)[:, None] * (C * CHUNK) + start + held[None, :]
            u = tl.load(place, mask=(w < W)[:, None], other=0.0)
            total += tl.dot(t, tl.trans(u), input_precision=PRECISION)
    to = out + (part * (tl.num_programs(2) // PARTS) + m) * (E * D * W) + e * OF_EXPERT
    inside = (d < D)[:, None] & (w < W)[None, :]
    tl.store(to + d[:, None] * ALONG_D + w[None, :] * ALONG_W, total, mask=inside)


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_in: Tensor, w_up: Tensor | None, b_in: Tensor | None, w_out: Tensor,
        b_out: Tensor | None, gates: Tensor, chosen: Tensor, top_k: int, activation: str, weighed: bool, added: bool,
    ) -> Tensor:  # fmt: skip
        models, tokens, d_model = x.shape
        experts = gates.shape[-1]
        width = w_in.shape[-1] // experts
        x, gates = x.contiguous(), gates.contiguous()
        half = ten_bits()
        ctx.sizes = at_once = sizes(d_model, half, w_up is not None)
        by = of_one(x, at_once.chunk) if experts == 1 else dispatch(chosen, top_k, at_once.chunk)
        ctx.added = added
        ctx.settings = {
            "E": experts,
            "TOP": top_k,
            "D": d_model,
            "DP": triton.next_power_of_2(d_model),
            "W": width,
            "WP": padded(width),
            "ACT": CODES[activation],
            "GATED": w_up is not None,
            "BIASED": b_in is not None,
            "WEIGHED": weighed,
            "ADDED": added and top_k == 1,
            "HALF": half,
            "PRECISION": precision(),
            "CHUNK": at_once.chunk,
        }
        widest = ctx.settings["WP"]
        ctx.slice = min(at_once.piece_back, widest)
        y = x.new_empty(models, tokens, top_k, d_model)
        count = by.first.shape[1]
        # A pointer that the settings leave unread may be any.
        b_in, b_out = (x if b is None else b.contiguous() for b in (b_in, b_out))
        given, of_tokens, of_in, of_up, of_out = x, x, x, x, x
        if half:
            # Not in the kernel: where one slice is all, what Triton 3.6 made of it for an H100 gave other numbers.
            given, of_tokens = rounded(x, True)
            (w_in, of_in), (w_out, of_out) = rounded(w_in, False), rounded(w_out, True)
            w_up, of_up = (x, x) if w_up is None else rounded(w_up, False)
            in_t, up_t, out_t = w_in, w_up, w_out
        else:
            w_in, w_out = w_in.contiguous(), w_out.contiguous()
            w_up = x if w_up is None else w_up.contiguous()
            in_t, out_t = (w.transpose(1, 2).contiguous() for w in (w_in, w_out))
            up_t = w_up.transpose(1, 2).contiguous() if ctx.settings["GATED"] else x
        _through[(count, models)](
            given, of_tokens, x, in_t, up_t, b_in, out_t, b_out, gates, by.order, by.first, by.last, by.expert, of_in,
            of_up, y, tokens, count, SLICE=min(at_once.piece, widest), **ctx.settings, num_warps=at_once.warps,
            num_stages=at_once.stages,
        )  # fmt: skip
        matrices, lengths = (w_in, w_up, in_t, up_t, w_out), (of_in, of_up, of_out)
        ctx.save_for_backward(given, of_tokens, *matrices, *lengths, b_in, b_out, gates, *by)
        if top_k == 1:
            return y.view(models, tokens, d_model)
        return x + y.sum(2) if added else y.sum(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, of_tokens, *matrices, b_in, b_out, gates, order, chunks, first, last, expert = ctx.saved_tensors
        by, of = Dispatch(order, chunks, first, last, expert), ctx.settings
        upstream = gradients[0].contiguous()
        models, tokens, d_model = x.shape
        experts, top_k, width, half = of["E"], of["TOP"], of["W"], of["HALF"]
        count = by.first.shape[1]
        columns = count * of["CHUNK"]

        def written(units: int) -> Tensor:
            shape = (models, columns, units) if half else (models, units, columns)
            return torch.empty(shape, dtype=torch.float16 if half else x.dtype, device=x.device)

        def summed(*shape: int) -> Tensor:
            return torch.empty(shape, device=x.device)

        hidden_t, d_before_t = written(width), written(width)
        d_up_t = written(width) if of["GATED"] else None
        x_t, upstream_t = written(d_model), written(d_model)
        d_bias, d_out_bias = summed(models, count, width), summed(models, count, d_model)
        of_hidden, of_gradients = (summed(models, count) if half else x for _ in range(2))
        d_gates = torch.zeros_like(gates) if of["WEIGHED"] else None
        d_x = summed(models, tokens, top_k, d_model)
        w_in, w_up, in_t, up_t, w_out, *lengths = matrices
        _back[(count, models)](
            x, of_tokens, w_in, w_up, in_t, up_t, b_in, w_out, b_out, gates, by.order, by.first, by.last, by.expert,
            *lengths, upstream, x_t, upstream_t, hidden_t, d_before_t, x if d_up_t is None else d_up_t, d_bias,
            d_out_bias, x if d_gates is None else d_gates, d_x, of_hidden, of_gradients, tokens, count, **of,
            SLICE=ctx.slice, num_warps=ctx.sizes.warps_back, num_stages=ctx.sizes.stages_back,
        )  # fmt: skip

        def matrix(rows: Tensor, units: Tensor, unscale: Tensor, outwards: bool) -> Tensor:
            block_d = min(TILE, of["DP"])
            block_w = min(TILE, of["WP"])
            tiles = triton.cdiv(d_model, block_d) * triton.cdiv(width, block_w)
            # As if all tokens had gone to one expert: experts are rarely of one size, and the largest is waited for.
            parts = max(1, min(16, PROGRAMS // (models * tiles), tokens * top_k // 512))
            shape = (models, experts, width, d_model) if outwards else (models, d_model, experts, width)
            out = summed(parts, *shape)
            _matrix[(tiles, experts, models * parts)](
                rows, units, by.chunks, unscale, out, count, E=experts, D=d_model, W=width,
                ALONG_D=1 if outwards else experts * width, ALONG_W=d_model if outwards else 1,
                OF_EXPERT=width * d_model if outwards else width, PARTS=parts, HALF=half,
                PRECISION=of["PRECISION"], CHUNK=of["CHUNK"], BLOCK_D=block_d, BLOCK_W=block_w,
                HELD=ctx.sizes.held, num_warps=8, num_stages=3,
            )  # fmt: skip
            total: Tensor = out[0] if parts == 1 else out.sum(0)
            return total

        def of_experts(sums: Tensor) -> Tensor:
            return add_chunks(sums[:, None], by.chunks[:, None], 0)[:, 0]

        d_w_in = matrix(x_t, d_before_t, of_gradients, False).flatten(2)
        d_w_up = None if d_up_t is None else matrix(x_t, d_up_t, of_gradients, False).flatten(2)
        d_w_out = matrix(upstream_t, hidden_t, of_hidden, True).flatten(1, 2)
        d_b_in = d_b_out = None
        if of["BIASED"]:
            d_b_in, d_b_out = of_experts(d_bias).flatten(1), of_experts(d_out_bias)
        d_x = d_x.view_as(x) if top_k == 1 else d_x.sum(2)
        if ctx.added and top_k > 1:
            d_x += upstream
        return d_x, d_w_in, d_w_up, d_b_in, d_w_out, d_b_out, d_gates, None, None, None, None, None


class Sizes(NamedTuple):
    """How much a program takes at once, and with how many warps and stages of loading ahead."""

    chunk: int
    """Assignments that it takes through its expert."""
    piece: int
    """Hidden units."""
    warps: int
    stages: int
    piece_back: int
    """Hidden units, going back."""
    warps_back: int
    stages_back: int
    held: int
    """Assignments that a matrix's gradient is summed over at once: of one chunk, which has one scale."""


def sizes(d_model: int, half: bool, gated: bool) -> Sizes:
    """What fits a multiprocessor's shared memory, where products to fp32's bits hold each number in two parts; and
    its registers, where a gated unit is two."""
    if half:
        if d_model > 128:
            return Sizes(64, 32, 8, 2, 32, 8, 2, 64)
        return Sizes(64, 64, 4, 2, 32, 4, 3, 64) if gated else Sizes(64, 64, 4, 3, 64, 4, 2, 64)
    if d_model <= 64:
        return Sizes(128, 32, 4, 1, 32, 8, 1, 32)
    return Sizes(64, 16, 4, 1, 16, 4, 1, 32) if d_model <= 128 else Sizes(32, 16, 4, 1, 16, 2, 1, 32)


def open_experts(
    ffn: FeedForward,
    p: Parameters,
    name: str,
    x: Float[Tensor, "M N D"],
    routing: Routing | None,
    added: bool = False,
) -> Float[Tensor, "M N D"]:
    """The FFN's output, of the chosen experts alone, and x too where it is `added`; equal to `model.feedforward`'s
    masked form up to rounding. Without a routing there is one expert, open to all."""
    if routing is None:
        gates = chosen = x.new_ones(*x.shape[:2], 1)
    else:
        gates, chosen = routing.gates.flatten(1, 2), routing.chosen.detach().flatten(1, 2)
    out: Tensor = _Grouped.apply(
        x,
        p[name + "w_in"],
        p.get(name + "w_up"),
        p.get(name + "b_in"),
        p[name + "w_out"],
        p.get(name + "b_out"),
        gates,
        chosen,
        ffn.top_k,
        ffn.activation,
        not ffn.plain_gates,
        added,
    )
    return out


def feed_forward(
    ffn: FeedForward,
    p: Parameters,
    name: str,
    x: Float[Tensor, "M N D"],
    routing: Routing | None,
    added: bool = False,
) -> Float[Tensor, "M N D"]:
    """The FFN's output, and x too where it is `added`: of the open experts where that is one pass, else masked."""
    if in_one_pass(ffn, ten_bits()):
        return open_experts(ffn, p, name, x, routing, added)
    out = masked(ffn, p, name, x, routing)
    return x + out if added else out
