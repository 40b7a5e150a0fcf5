"""Sums by token over sequences that never change: their order is made once, and every sum is one pass.

A full batch asks for the same rows of the same tables at every step. Sorted by the token at a position, all that
looked at one row lie side by side; long runs are cut into chunks, so that many programs share them, and the
chunks of a token are then added up in their order. `lookup.sum_rows` is for sequences that change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 64
"""Sequences a chunk, at most."""
ROWS = 16
"""Sequences that a program holds at once."""


class Segments(NamedTuple):
    """Sequences in the order of their token, at each position."""

    order: Int[Tensor, "M T B"]
    first: Int[Tensor, "M T C"]
    """Where in `order` a chunk begins."""
    last: Int[Tensor, "M T C"]
    """Where it ends; chunks that are not needed are empty."""
    chunks: Int[Tensor, "M T V_and_one"]
    """The chunks of token v are chunks[v] to chunks[v + 1] - 1."""
    pairs: Int[Tensor, "M T T B"]
    """Sequences in the order of their pair of tokens, at every two positions."""
    begin: Int[Tensor, "M T T B_and_one"]
    """Where in `pairs` those with one pair begin; B for pairs that are not needed."""
    pair: Int[Tensor, "M T T B"]
    """Which pair that is: first token · V + second token."""
    longest: tuple[tuple[int, ...], ...]
    """Most sequences with one pair, at every two positions."""
    different: tuple[tuple[int, ...], ...]
    """Most pairs of a model there."""


def segments(tokens: Int[Tensor, "M B T"], vocabulary: int) -> Segments:
    """The order of these sequences."""
    models, batch, length = tokens.shape
    token_at = tokens.transpose(1, 2).contiguous()
    order = token_at.argsort(dim=-1, stable=True)
    none = tokens.new_zeros(models, length, vocabulary)
    counts = none.scatter_add(2, token_at, torch.ones_like(token_at))
    before = F.pad(counts.cumsum(-1), (1, 0))
    chunks = F.pad(((counts + CHUNK - 1) // CHUNK).cumsum(-1), (1, 0))
    number = torch.arange(vocabulary + triton.cdiv(batch, CHUNK), device=tokens.device)
    number = number.expand(models, length, -1).contiguous()
    token = torch.searchsorted(chunks[..., 1:].contiguous(), number, right=True).clamp(max=vocabulary - 1)
    first = before.gather(2, token) + (number - chunks.gather(2, token)) * CHUNK
    last = torch.minimum(first + CHUNK, before.gather(2, token + 1))
    used = number < chunks[..., -1:]
    first, last = (torch.where(used, place, 0) for place in (first, last))
    code = token_at[:, :, None] * vocabulary + token_at[:, None]
    pairs = code.argsort(dim=-1, stable=True)
    code = code.gather(-1, pairs)
    which = F.pad((code[..., 1:] != code[..., :-1]).cumsum(-1), (1, 0))
    place = torch.arange(batch, device=tokens.device).expand_as(which)
    begin = tokens.new_full((models, length, length, batch + 1), batch).scatter_reduce(
        -1, which, place, "amin"
    )
    pair = torch.zeros_like(code).scatter(-1, which, code)
    parts = (order, first, last, chunks, pairs, begin, pair)
    longest = (begin[..., 1:] - begin[..., :-1]).amax((0, 3)).tolist()
    different = (which.amax((0, 3)) + 1).tolist()
    order, first, last, chunks, pairs, begin, code = (x.to(torch.int32).contiguous() for x in parts)
    most = (tuple(map(tuple, counts)) for counts in (longest, different))
    return Segments(order, first, last, chunks, pairs, begin, code, *most)


@triton.jit
def _sum_chunks(
    gradient, order, first, last, out, B, C, T: tl.constexpr, START: tl.constexpr, P: tl.constexpr,
    WIDTH: tl.constexpr, WP: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """One chunk of one position: the sum of its rows of `gradient`."""
    c = tl.program_id(0)
    p = tl.program_id(1)
    m = tl.program_id(2).to(tl.int64)
    column = tl.arange(0, WP)
    at = m * T + START + p
    begin = tl.load(first + at * C + c)
    end = tl.load(last + at * C + c)
    if begin < end:
        total = tl.zeros((HELD, WP), tl.float32)
        for start in range(begin, end, HELD):
            i = start + tl.arange(0, HELD)
            b = tl.load(order + at * B + i, mask=i < end, other=0)
            there = (i < end)[:, None] & (column < WIDTH)[None, :]
            place = gradient + ((m * B + b) * P + p)[:, None] * WIDTH + column[None, :]
            total += tl.load(place, mask=there, other=0.0)
        tl.store(out + ((m * P + p) * C + c) * WIDTH + column, tl.sum(total, axis=0), mask=column < WIDTH)


@triton.jit
def _add_chunks(
    partial, chunks, out, C, V, STRIDE, T: tl.constexpr, START: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """One token at one position: the sum of its chunks; zero where it never stands."""
    v = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = (tl.program_id(2) // P).to(tl.int64)
    p = tl.program_id(2) % P
    at = chunks + (m * T + START + p) * (V + 1) + v
    begin = tl.load(at)
    end = tl.load(at + 1)
    total = tl.zeros((HELD, BLOCK), tl.float32)
    for start in range(begin, end, HELD):
        c = start + tl.arange(0, HELD)
        there = (c < end)[:, None] & (column < WIDTH)[None, :]
        place = partial + ((m * P + p) * C + c)[:, None] * WIDTH + column[None, :]
        total += tl.load(place, mask=there, other=0.0)
    tl.store(out + ((m * P + p) * V + v) * STRIDE + column, tl.sum(total, axis=0), mask=column < WIDTH)


def add_chunks(
    partial: Float[Tensor, "M P C F"],
    chunks: Int[Tensor, "M T V_and_one"],
    start: int,
    out: Float[Tensor, "M P V F"] | None = None,
) -> Float[Tensor, "M P V F"]:
    """Each token's sum from its chunks' (see `Segments`), at positions start, start + 1, …, start + P - 1.

    `out` may be columns of something wider, of which all else is one block.
    """
    models, positions, count, width = partial.shape
    length, vocabulary = chunks.shape[1], chunks.shape[2] - 1
    out = partial.new_empty(models, positions, vocabulary, width) if out is None else out
    block = min(128, triton.next_power_of_2(width))
    _add_chunks[(vocabulary, triton.cdiv(width, block), models * positions)](
        partial, chunks, out, count, vocabulary, out.stride(2), T=length, START=start, P=positions, WIDTH=width,
        BLOCK=block, HELD=32,
    )  # fmt: skip
    return out


def sum_segments(gradient: Float[Tensor, "M B P F"], by: Segments, start: int) -> Float[Tensor, "M P V F"]:
    """What `lookup.sum_rows` gives, at positions start, start + 1, …, start + P - 1."""
    models, batch, positions, width = gradient.shape
    length, count = by.first.shape[1:]
    partial = gradient.new_empty(models, positions, count, width)
    _sum_chunks[(count, positions, models)](
        gradient.contiguous(), by.order, by.first, by.last, partial, batch, count, T=length, START=start, P=positions,
        WIDTH=width, WP=triton.next_power_of_2(width), HELD=ROWS,
    )  # fmt: skip
    return add_chunks(partial, by.chunks, start)
