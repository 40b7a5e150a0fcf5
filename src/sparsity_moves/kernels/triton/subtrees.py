"""Below a tree's top levels: the tokens of each subtree brought together, and products with all of its nodes.

A counting sort puts every tree's tokens in order of the subtree that they meet. `_respond` gives their responses and
walks them, `_spread` what they add to the output, `_weigh` the gradient of the subtree's rows. A program's tokens are
of one subtree, and its columns that subtree's nodes in heap order; what is off a token's path is zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsity_moves.kernels.triton.feedforward import _phi, _phi_slope

SHALLOW = 5
"""Levels up to which a tree has no subtrees: it is its top."""
TOKENS, DEEP, WIDE = 128, 64, 128
"""Tokens a program, elements of a sum it takes at a time, and columns of the output."""
CHUNK = 128
"""Tokens that are counted at a time."""


MANY = 4096
"""Tokens from which two trees are taken together: with fewer, too few would meet the same two subtrees."""


class Cut(NamedTuple):
    """P trees of depth d below whose top levels hang subtrees of so many levels."""

    trees: int
    depth: int
    top: int
    below: int
    band: int
    """Neighbouring trees that are taken together: tokens that meet the same subtree of each are one group."""

    @property
    def nodes(self) -> int:
        return (2 << self.depth) - 1

    @property
    def crown(self) -> int:
        """Nodes of a tree's top."""
        return (1 << self.top) - 1

    @property
    def bands(self) -> int:
        return self.trees // self.band

    @property
    def groups(self) -> int:
        """Choices of a subtree from every tree of a band, over all bands."""
        return self.bands << self.top * self.band

    @property
    def columns(self) -> int:
        """Nodes of a group's subtrees, each with one column before it that stays empty."""
        return self.band << self.below

    @property
    def warps(self) -> int:
        """Of a program that holds the responses of all columns: with fewer they would not fit its registers."""
        return 8 if self.columns > 32 else 4


def cut(trees: int, depth: int, tokens: int) -> Cut:
    """Where to cut: about half way, with subtrees of 15 to 63 nodes, which fill the tiles of a product.

    Each pass over the tokens costs their width in memory, and so does each part of the output: of many trees that are
    not too deep two are taken together, with tops of three levels, so that 64 groups share a pass.
    """
    levels = depth + 1
    if tokens >= MANY and trees % 2 == 0 and 7 <= levels <= 9:
        return Cut(trees, depth, 3, levels - 3, 2)
    below = 0 if levels <= SHALLOW else min(6, max(4, (levels + 1) // 2))
    return Cut(trees, depth, levels - below, below, 1)


@triton.jit
def _descend(right, column, LEVELS: tl.constexpr):
    """The nodes on each row's path, and where it would go on; column i is node i, the root 1, and column 0 empty."""
    node = tl.sum(right, axis=1) * 0 + 1
    on = right != right
    for _ in tl.static_range(LEVELS):
        here = column[None, :] == node[:, None]
        on = on | here
        node = 2 * node + tl.sum(tl.where(here, right, 0), axis=1)
    return on, node


@triton.jit
def _count(subtree, counts, N, chunks, K: tl.constexpr, CHUNK: tl.constexpr):
    """Tokens of each subtree, chunk by chunk."""
    tree = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    key = tl.load(subtree + tree * N + n, mask=n < N, other=-1)
    k = tl.arange(0, K)
    found = tl.sum((key[:, None] == k[None, :]).to(tl.int32), axis=0)
    tl.store(counts + (tree * K + k) * chunks + tl.program_id(0), found)


@triton.jit
def _place(subtree, starts, order, place_of, N, chunks, K: tl.constexpr, CHUNK: tl.constexpr):
    """Each token to its place among those of its subtree, in the tokens' order."""
    tree = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    key = tl.load(subtree + tree * N + n, mask=n < N, other=-1)
    k = tl.arange(0, K)
    mine = (key[:, None] == k[None, :]).to(tl.int32)
    first = tl.load(starts + (tree * K + k) * chunks + tl.program_id(0))
    place = tl.sum(mine * (tl.cumsum(mine, axis=0) - 1 + first[None, :]), axis=1)
    tl.store(order + tree * N + place, n, mask=n < N)
    tl.store(place_of + tree * N + n, tree * N + place, mask=n < N)


@triton.jit
def _units(group, TOP: tl.constexpr, BELOW: tl.constexpr, BAND: tl.constexpr):
    """Rows of the weights that a group's columns are, and which columns are any: node 0 of a subtree is none."""
    column = tl.arange(0, BAND << BELOW)
    own = column >> BELOW
    node = column & ((1 << BELOW) - 1)
    level = tl.zeros((BAND << BELOW,), tl.int32)
    for n in tl.static_range(1, BELOW):
        level += (node >= (1 << n)).to(tl.int32)
    width = 1 << level
    band = group >> (TOP * BAND)
    subtree = (group >> ((BAND - 1 - own) * TOP)) & ((1 << TOP) - 1)
    tree = band * BAND + own
    unit = tree * ((1 << (TOP + BELOW)) - 1) + (width << TOP) - 1 + subtree * width + node - width
    return unit.to(tl.int64), node > 0


@triton.jit
def _respond(
    x,
    w,
    bias,
    value,
    slope,
    order,
    group_of,
    first_of,
    bounds,
    groups,
    D: tl.constexpr,
    TOP: tl.constexpr,
    BELOW: tl.constexpr,
    BAND: tl.constexpr,
    ACT: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """A subtree's responses to some of its tokens, and their paths: φ(a) and φ'(a) on them, zero elsewhere.

    Going back: the gradient of the responses, from that of the output and φ'(a).
    """
    group = tl.load(group_of + tl.program_id(0))
    if group < groups:
        place = (tl.load(first_of + tl.program_id(0)) + tl.arange(0, BM)).to(tl.int64)
        inside = place < tl.load(bounds + group + 1)
        row = tl.load(order + place, mask=inside, other=0).to(tl.int64)
        unit, some = _units(group, TOP, BELOW, BAND)
        column = tl.arange(0, BAND << BELOW)
        a = tl.zeros((BM, BAND << BELOW), tl.float32)
        for start in range(0, D, BK):
            d = start + tl.arange(0, BK)
            there = (d < D)[None, :]
            tile = tl.load(x + row[:, None] * D + d[None, :], mask=inside[:, None] & there, other=0.0)
            weight = tl.load(w + unit[:, None] * D + d[None, :], mask=some[:, None] & there, other=0.0)
            a = tl.dot(tile, tl.trans(weight), a, input_precision=PRECISION)
        at = place[:, None] * (BAND << BELOW) + column[None, :]
        if BACKWARD:
            s = tl.load(slope + at, mask=inside[:, None], other=0.0).to(tl.float32)
            tl.store(value + at, (a * s).to(value.dtype.element_ty), mask=inside[:, None])
        else:
            a += tl.load(bias + unit, mask=some, other=0.0).to(tl.float32)[None, :]
            right = (a > 0).to(tl.int32)
            on = right != right
            for tree in tl.static_range(BAND):
                path, _ = _descend(right, column - (tree << BELOW), BELOW)
                on = on | path
            h = tl.where(on, _phi(a, ACT), 0.0).to(value.dtype.element_ty)
            s = tl.where(on, _phi_slope(a, ACT), 0.0).to(slope.dtype.element_ty)
            tl.store(value + at, h, mask=inside[:, None])
            tl.store(slope + at, s, mask=inside[:, None])


@triton.jit
def _spread(
    value,
    w,
    parts,
    order,
    group_of,
    first_of,
    bounds,
    N,
    groups,
    D: tl.constexpr,
    TOP: tl.constexpr,
    BELOW: tl.constexpr,
    BAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
):
    """What a subtree adds to some of its tokens: values times rows, into its tree's part of the sum."""
    group = tl.load(group_of + tl.program_id(1))
    if group < groups:
        place = (tl.load(first_of + tl.program_id(1)) + tl.arange(0, BM)).to(tl.int64)
        inside = place < tl.load(bounds + group + 1)
        row = tl.load(order + place, mask=inside, other=0).to(tl.int64)
        unit, some = _units(group, TOP, BELOW, BAND)
        d = tl.program_id(0) * BD + tl.arange(0, BD)
        there = (d < D)[None, :]
        at = place[:, None] * (BAND << BELOW) + tl.arange(0, BAND << BELOW)[None, :]
        h = tl.load(value + at, mask=inside[:, None], other=0.0)
        weight = tl.load(w + unit[:, None] * D + d[None, :], mask=some[:, None] & there, other=0.0)
        y = tl.dot(h, weight, input_precision=PRECISION)
        out = parts + ((group >> (TOP * BAND)).to(tl.int64) * N + row)[:, None] * D + d[None, :]
        tl.store(out, y.to(parts.dtype.element_ty), mask=inside[:, None] & there)


@triton.jit
def _weigh(
    value,
    x,
    d_w,
    d_bias,
    place_of,
    order,
    bounds,
    N,
    D: tl.constexpr,
    TOP: tl.constexpr,
    BELOW: tl.constexpr,
    BAND: tl.constexpr,
    BIASED: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
):
    """The gradient of a subtree's rows: its values times its tokens, over all of them in their order."""
    group = tl.program_id(1)
    tree = group >> TOP
    unit, some = _units(group, TOP, BELOW, 1)
    column = ((tree % BAND) << BELOW) + tl.arange(0, 1 << BELOW)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    there = (d < D)[None, :]
    total = tl.zeros((1 << BELOW, BD), tl.float32)
    total_bias = tl.zeros((1 << BELOW,), tl.float32)
    end = tl.load(bounds + group + 1)
    for start in range(tl.load(bounds + group), end, BM):
        place = (start + tl.arange(0, BM)).to(tl.int64)
        inside = place < end
        row = tl.load(order + place, mask=inside, other=0).to(tl.int64)
        kept = tl.load(place_of + (tree // BAND).to(tl.int64) * N + row, mask=inside, other=0).to(tl.int64)
        at = kept[:, None] * (BAND << BELOW) + column[None, :]
        h = tl.load(value + at, mask=inside[:, None], other=0.0)
        tile = tl.load(x + row[:, None] * D + d[None, :], mask=inside[:, None] & there, other=0.0)
        total = tl.dot(tl.trans(h), tile, total, input_precision=PRECISION)
        if BIASED:
            total_bias += tl.sum(h.to(tl.float32), axis=0)
    mask = some[:, None] & there
    tl.store(d_w + unit[:, None] * D + d[None, :], total.to(d_w.dtype.element_ty), mask=mask)
    if BIASED:
        if tl.program_id(0) == 0:
            tl.store(d_bias + unit, total_bias.to(d_bias.dtype.element_ty), mask=some)


class Order(NamedTuple):
    """The tokens of every group, one group after another, and how they are cut for programs."""

    order: Tensor
    """Tokens, one tree or band after another, in each by group; int32 of P·N."""
    place_of: Tensor
    """Where each token is in it; its inverse."""
    bounds: Tensor
    """Where each group's begin, and the end of the last."""
    group_of: Tensor
    """The group of each program's tokens; one past the last where a program has none."""
    first_of: Tensor
    """Where a program's tokens begin."""

    def by_program(self) -> tuple[Tensor, ...]:
        """As kernels take it."""
        return self.order, self.group_of, self.first_of, self.bounds


def sort(key: Tensor, keys: int) -> Order:
    """A stable counting sort of every row's tokens by their key, below `keys`; its sizes do not leave the device."""
    trees, tokens = key.shape
    chunks = triton.cdiv(tokens, CHUNK)
    counts = torch.empty(trees, keys * chunks, dtype=torch.int32, device=key.device)
    _count[(chunks, trees)](key, counts, tokens, chunks, K=keys, CHUNK=CHUNK)
    starts = counts.cumsum(1, dtype=torch.int32) - counts
    order, place_of = torch.empty_like(key), torch.empty_like(key)
    _place[(chunks, trees)](key, starts, order, place_of, tokens, chunks, K=keys, CHUNK=CHUNK)
    first = torch.arange(trees, device=key.device, dtype=torch.int32)[:, None] * tokens
    bounds = (starts.view(trees, keys, chunks)[..., 0] + first).flatten()
    bounds = torch.cat([bounds, bounds.new_full((1,), trees * tokens)])
    programs = (bounds.diff() + TOKENS - 1) // TOKENS
    after = programs.cumsum(0)
    number = torch.arange(trees * (triton.cdiv(tokens, TOKENS) + keys), device=key.device)
    group = torch.searchsorted(after, number, right=True)
    own = group.clamp(max=trees * keys - 1)
    begin = bounds[own] + (number - after[own] + programs[own]) * TOKENS
    return Order(order.flatten(), place_of.flatten(), bounds, group.int(), begin.int())


def sort_twice(of: Cut, subtree: Tensor) -> tuple[Order, Order]:
    """By groups of bands, and by every tree's own subtrees; the same where a band is one tree."""
    own = sort(subtree, 1 << of.top)
    if of.band == 1:
        return own, own
    shift = torch.arange(of.band - 1, -1, -1, device=subtree.device, dtype=torch.int32)[:, None] * of.top
    key = (subtree.view(of.bands, of.band, -1) << shift).sum(1, dtype=torch.int32)
    return sort(key, 1 << of.top * of.band), own
