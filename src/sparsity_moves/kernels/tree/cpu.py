"""Trees on a CPU, from PyTorch's own operations.

A few tokens: each walks its paths alone. A level's responses are those elements of x W_inᵀ that paths meet
(`sampled_addmm`), and the output is a weighted sum of rows of W_out (`embedding_bag`); no row is copied, and only
rows on some path are read. With several dozen tokens the top levels, which all share, are one product instead.

Many tokens, and training: the top t levels are one product for all. Below, the tokens that meet the same subtree are
brought together and meet all of its nodes, 2^(d + 1 - t) - 1, in one small product, whose rows stay in the cache
while they are used. So a token costs 2^t + 2^(d + 1 - t) - 2 units a tree, of which d + 1 count.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.kernels.grouped import value_and_slope
from sparsity_moves.model.feedforward import ACTIVATIONS
from sparsity_moves.model.tree import level, open_nodes

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)

SHARED = 4
"""Top levels that `walk` computes whole, with at least as many tokens as..."""
DOZENS = 32
"""...these."""


def sampled(crow: Tensor, column: Tensor, start: Tensor, x: Tensor, w: Float[Tensor, "W D"]) -> Tensor:
    """start + x_i · w_j at the (i, j) of a sparse pattern; its rows are those of x."""
    pattern = torch.sparse_csr_tensor(crow, column, start, (len(x), len(w)), check_invariants=False)
    found: Tensor = torch.sparse.sampled_addmm(pattern, x, w.T).values()
    return found


def walk(
    x: Float[Tensor, "N D"],
    w_in: Float[Tensor, "W D"],
    b_in: Float[Tensor, " W"],
    w_out: Float[Tensor, "W D"],
    depth: int,
    activation: str,
) -> Float[Tensor, "N D"]:
    """Every token down its own paths; for inference, it has no backward pass."""
    tokens, nodes = len(x), (2 << depth) - 1
    trees = len(w_in) // nodes
    roots = torch.arange(trees) * nodes
    node = torch.zeros(tokens, trees, dtype=torch.long)
    crow = torch.arange(tokens + 1) * trees
    shared = min(SHARED, depth + 1) if tokens >= DOZENS else 0
    if shared:
        units = (roots[:, None] + torch.arange((1 << shared) - 1)).flatten()
        top = torch.addmm(b_in[units], x, w_in[units].T).unflatten(1, (trees, -1))
    visited, responses = [], []
    for number in range(depth + 1):
        unit = node + roots
        if number < shared:
            response = top.gather(-1, node[..., None])[..., 0]
        else:
            response = sampled(crow, unit.flatten(), b_in[unit].flatten(), x, w_in).view(tokens, trees)
        visited.append(unit)
        responses.append(response)
        node = 2 * node + 1 + (response > 0)
    values = ACTIVATIONS[activation](torch.cat(responses, 1))
    return F.embedding_bag(torch.cat(visited, 1), w_out, per_sample_weights=values, mode="sum")


class Split:
    """P trees of depth d, cut below their top t levels, and the tokens in order of the subtrees that they meet."""

    def __init__(self, trees: int, depth: int) -> None:
        self.trees, self.depth = trees, depth
        self.top = (depth + 1) // 2 or 1
        nodes = (2 << depth) - 1
        roots = torch.arange(trees) * nodes
        self.units = (roots[:, None] + torch.arange((1 << self.top) - 1)).flatten()
        """Of the top levels."""
        below = torch.arange(1 << self.top)[:, None]
        levels = [
            (1 << self.top + n) - 1 + (below << n) + torch.arange(1 << n) for n in range(depth + 1 - self.top)
        ]
        self.subtrees = (roots[:, None, None] + torch.cat(levels, 1)).flatten(0, 1)
        """Units of every subtree, (P·2^t, S), in its own heap order."""

    def sort(self, subtree: Int[Tensor, "N P"]) -> list[tuple[Tensor, slice, Tensor]]:
        """Units, place in the order, and tokens of every subtree that any token meets; trees one after another."""
        order = subtree.T.argsort(dim=1, stable=True)
        key = subtree.T + (torch.arange(self.trees) << self.top)[:, None]
        sizes = key.flatten().bincount(minlength=len(self.subtrees)).tolist()
        groups, start = [], 0
        for units, size, rows in zip(self.subtrees, sizes, order.flatten().split(sizes), strict=True):
            if size:
                groups.append((units, slice(start, start + size), rows))
            start += size
        return groups


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, depth: int, activation: str
    ) -> Tensor:
        split = Split(len(w_in) // ((2 << depth) - 1), depth)
        before = torch.addmm(b_in[split.units], x, w_in[split.units].T).unflatten(1, (split.trees, -1))
        right = before > 0
        on = open_nodes(right, split.top - 1)
        last = level(split.top - 1)
        leaf = on[..., last].int().argmax(-1, keepdim=True)
        subtree = 2 * leaf + right[..., last].gather(-1, leaf)
        groups = split.sort(subtree[..., 0])

        below = x.new_empty(len(x) * split.trees, split.subtrees.shape[1])  # in the order of the groups
        for units, place, rows in groups:
            torch.addmm(b_in[units], x[rows], w_in[units].T, out=below[place])
        on_below = open_nodes(below > 0, depth - split.top)

        value, slope = value_and_slope(activation, before)
        value, slope = (value * on).flatten(1), (slope * on).flatten(1)
        value_below, slope_below = value_and_slope(activation, below)
        value_below, slope_below = value_below * on_below, slope_below * on_below
        out = value @ w_out[split.units]
        for units, place, rows in groups:
            out.index_add_(0, rows, value_below[place] @ w_out[units])
        ctx.save_for_backward(x, w_in, w_out, value, slope, value_below, slope_below)
        ctx.split, ctx.groups = split, groups
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, w_in, w_out, value, slope, value_below, slope_below = ctx.saved_tensors
        upstream, units = gradients[0].contiguous(), ctx.split.units
        d_w_in, d_b_in, d_w_out = torch.zeros_like(w_in), x.new_zeros(len(w_in)), torch.zeros_like(w_out)
        d_before = (upstream @ w_out[units].T).mul_(slope)
        d_w_out[units] = value.T @ upstream
        d_w_in[units] = d_before.T @ x
        d_b_in[units] = d_before.sum(0)
        d_x = d_before @ w_in[units]
        for units, place, rows in ctx.groups:
            given, asked = upstream[rows], x[rows]
            d_before = (given @ w_out[units].T).mul_(slope_below[place])
            d_w_out[units] = value_below[place].T @ given
            d_w_in[units] = d_before.T @ asked
            d_b_in[units] = d_before.sum(0)
            d_x.index_add_(0, rows, d_before @ w_in[units])
        return d_x, d_w_in, d_b_in, d_w_out, None, None


def grouped(
    x: Float[Tensor, "N D"],
    w_in: Float[Tensor, "W D"],
    b_in: Float[Tensor, " W"],
    w_out: Float[Tensor, "W D"],
    depth: int,
    activation: str,
) -> Float[Tensor, "N D"]:
    """Tokens of a subtree together, forward and backward."""
    out: Tensor = _Grouped.apply(x, w_in, b_in, w_out, depth, activation)  # type: ignore[no-untyped-call]
    return out
