"""Trees as a PyTorch module, of any number of tokens; it can count who visits its nodes, and be pruned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsity_moves.errors import UserError
from sparsity_moves.kernels.tree import masked, tree_layer
from sparsity_moves.measures.tree import balance, dead, leaf_entropy
from sparsity_moves.model import FeedForward
from sparsity_moves.model.feedforward import hidden_units
from sparsity_moves.model.tree import by_path, visits

PART = 1024
"""Tokens counted at a time: counting computes every node."""


class Trees(nn.Module):
    """P trees of depth d in the place of an MLP.

    Args:
        d_model: D, of the residual stream.
        ffn: the trees' shape; its router is `tree`.
        bias: whether the output has a bias of its own. Trees as published have none; an MLP that is converted may.
    """

    def __init__(self, d_model: int, ffn: FeedForward, *, bias: bool = False) -> None:
        super().__init__()
        if not ffn.trees:
            raise UserError(f"router '{ffn.router}' is no tree")
        self.ffn = ffn
        self.w_in = nn.Parameter(torch.empty(ffn.width, d_model))
        self.b_in = nn.Parameter(torch.empty(ffn.width))
        self.w_out = nn.Parameter(torch.empty(ffn.width, d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.register_buffer("alive", None)
        self.alive: Tensor | None
        self.visited: Int[Tensor, "P N"] | None = None
        """Visits of each node since counting began; None while nobody counts."""
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """W_in, b ~ U(±1/√D), W_out ~ U(±1/√(open units)), as the public code of trees starts."""
        d_model = self.w_in.shape[1]
        for parameter, fan in (
            (self.w_in, d_model),
            (self.b_in, d_model),
            (self.w_out, self.ffn.open_blocks),
        ):
            parameter.uniform_(-1 / math.sqrt(fan), 1 / math.sqrt(fan))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        flat = x.flatten(0, -2)
        weights: tuple[Tensor, ...] = (self.w_in, self.b_in, self.w_out)
        if self.visited is not None:
            self.count(flat)
        if torch.is_autocast_enabled(x.device.type):  # as a linear layer would
            kind = torch.get_autocast_dtype(x.device.type)
            flat, weights = flat.to(kind), tuple(w.to(kind) for w in weights)
        if self.alive is None:
            out = tree_layer(self.ffn, flat, *weights)
        else:
            out = masked(self.ffn, flat, *weights, alive=self.alive)
        return (out if self.bias is None else out + self.bias).view_as(x)

    @torch.no_grad()
    def count(self, x: Float[Tensor, "N D"]) -> None:
        assert self.visited is not None
        p = {"w_in": self.w_in.float().T[None], "b_in": self.b_in.float()[None]}
        alive = None if self.alive is None else self.alive[None]
        for part in x.float().split(PART):
            chosen = by_path(self.ffn, hidden_units(self.ffn, p, "", part[None])[:, :, None], alive).chosen
            self.visited += visits(self.ffn, chosen)[0]

    @torch.no_grad()
    def prune(self, visited: Int[Tensor, "P N"], threshold: float = 0.0) -> int:
        """Take away the nodes that at most this share of the tokens visited; gives how many units are left.

        As `model.tree.prune`: with threshold 0 nothing changes for the tokens that were counted.
        """
        if not 0 <= threshold < 1:
            raise UserError(f"a share of the tokens is from 0 to below 1, not {threshold}")
        self.alive = visited > threshold * visited[:, :1]
        units = torch.cat([self.alive.new_ones(self.ffn.always_on), self.alive.flatten()])
        for parameter in (self.w_in, self.b_in, self.w_out):
            parameter[~units] = 0
        return int(units.sum())

    def extra_repr(self) -> str:
        ffn = self.ffn
        return f"{ffn.trees} trees of depth {ffn.tree_depth}, {ffn.open_blocks} of {ffn.width} units open"


def every(model: nn.Module) -> dict[str, Trees]:
    """A model's trees by their names, in its order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Trees)}


@contextmanager
def counting(model: nn.Module) -> Iterator[dict[str, Int[Tensor, "P N"]]]:
    """While it is open every tree counts its visits, from zero; what it gives holds them, by the trees' names."""
    layers = every(model)
    for layer in layers.values():
        shape = (layer.ffn.trees, layer.ffn.nodes)
        layer.visited = torch.zeros(shape, dtype=torch.long, device=layer.w_in.device)
    try:
        yield {name: layer.visited for name, layer in layers.items() if layer.visited is not None}
    finally:
        for layer in layers.values():
            layer.visited = None


def usage(model: nn.Module, visited: dict[str, Int[Tensor, "P N"]]) -> list[dict[str, float | str]]:
    """One row a layer of trees: entropy of leaves, balance, dead nodes, meaned over its trees (`measures.tree`)."""
    rows: list[dict[str, float | str]] = []
    for name, layer in every(model).items():
        counts = visited[name][None]
        rows.append(
            {
                "layer": name,
                "leaf_entropy": float(leaf_entropy(layer.ffn, counts).mean()),
                "balance": float(balance(counts).mean()),
                "dead_nodes": float(dead(counts).mean()),
            }
        )
    return rows
