"""Trees as the FFN's route: every unit is a node, and the units themselves say where a token goes on.

P trees of depth d stand side by side, each with its nodes in heap order: node n's children are 2n + 1, where
a_n = w_in,n · x + b_n is not above zero, and 2n + 2, where it is (zero goes left, on every back end). A token walks
one path a tree, and the d + 1 nodes on it are the blocks whose gate is open (Belcak & Wattenhofer 2023; Sedghi et
al. 2026). The choice is hard and has no gradient: a token's loss reaches the nodes that it visits and no others.

Of what no token visits nothing is ever trained: a tree can lose its use of a branch for good. `prune` makes that
explicit, and the layer smaller, without changing what it computes on the tokens that were counted.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.model.architecture import Architecture, FeedForward, Parameters
from sparsity_moves.model.routing import Routing


def level(number: int) -> slice:
    """A level's nodes in heap order; the root is level 0."""
    return slice(2**number - 1, 2 ** (number + 1) - 1)


def open_nodes(
    right: Bool[Tensor, "*B N"], depth: int, alive: Bool[Tensor, "*B N"] | None = None
) -> Bool[Tensor, "*B N"]:
    """Which nodes a path from the root meets, level by level: parent open, and its branch taken.

    Where one child is not `alive` the other is taken; where none is, the path ends.
    """
    opened = [torch.ones_like(right[..., :1])]
    for number in range(depth):
        on, turn = opened[-1], right[..., level(number)]
        if alive is None:
            children = (on & ~turn, on & turn)
        else:
            left_alive, right_alive = alive[..., level(number + 1)].unflatten(-1, (-1, 2)).unbind(-1)
            children = (
                on & left_alive & (~turn | ~right_alive),
                on & right_alive & (turn | ~left_alive),
            )
        opened.append(torch.stack(children, -1).flatten(-2))
    return torch.cat(opened, -1)


def by_path(
    ffn: FeedForward, hidden: Float[Tensor, "M B R W"], alive: Bool[Tensor, "M P N"] | None = None
) -> Routing:
    """Every node's gate, 1 on the token's paths and 0 elsewhere; `alive` as `prune` leaves it.

    Every φ keeps the sign of what it is given, so the hidden units tell the branch as well as the responses do.
    """
    if not ffn.trees:
        raise UserError(f"router '{ffn.router}' has no trees to walk")
    right = hidden.detach()[..., ffn.always_on :].unflatten(-1, (ffn.trees, ffn.nodes)) > 0  # (M, B, R, P, N)
    there = None if alive is None else alive[:, None, None].expand_as(right)
    gates = open_nodes(right, ffn.tree_depth, there).flatten(-2).to(hidden.dtype)
    if ffn.always_on:
        gates = torch.cat([gates.new_ones(*gates.shape[:-1], ffn.always_on), gates], -1)
    return Routing(gates, gates, None)


def on_paths(ffn: FeedForward, chosen: Float[Tensor, "M B R W"]) -> Bool[Tensor, "M B R P N"]:
    """Which nodes every token visited, tree by tree; the units that are always on are left out."""
    open_nodes: Tensor = chosen[..., ffn.always_on :].unflatten(-1, (ffn.trees, ffn.nodes)) > 0
    return open_nodes


def leaves(ffn: FeedForward, chosen: Float[Tensor, "M B R W"]) -> Int[Tensor, "M B R P"]:
    """The leaf, from 0 to 2^d - 1, in which every token's path ends; -1 where it ends above."""
    last = on_paths(ffn, chosen)[..., level(ffn.tree_depth)]
    ended: Tensor = last.int().argmax(-1).where(last.any(-1), -1)
    return ended


def visits(ffn: FeedForward, chosen: Float[Tensor, "M B R W"]) -> Int[Tensor, "M P N"]:
    """How many tokens visited each node."""
    counts: Tensor = on_paths(ffn, chosen).sum((1, 2))
    return counts


def prune(
    architecture: Architecture, p: Parameters, visited: list[Int[Tensor, "M P N"]], threshold: float = 0.0
) -> Parameters:
    """The same models without the nodes that at most a share `threshold` of the tokens visited, layer by layer.

    A pruned node's weights are zero and its table `ffn.alive` says so: nobody is sent there. With threshold 0 the
    models compute, on the tokens that were counted, bit by bit what they did: nobody among them was sent there
    before. A higher threshold sends the few to the sibling, or ends their path, and does change the function.

    Args:
        architecture: of trees.
        p: stacked models.
        visited: a layer's counts each (`visits`), all over the same tokens.
        threshold: a share of a tree's tokens, from 0 to below 1.
    """
    ffn, out = architecture.ffn, dict(p)
    if not 0 <= threshold < 1:
        raise UserError(f"a share of the tokens is from 0 to below 1, not {threshold}")
    if len(visited) != architecture.depth:
        raise UserError(f"{architecture.depth} layer(s) want as many counts of visits, not {len(visited)}")
    for number, counts in enumerate(visited):
        name = f"{number}.ffn."
        alive = counts > threshold * counts[..., :1]  # the root has seen every token
        units = torch.cat([alive.new_ones(len(alive), ffn.always_on), alive.flatten(1)], 1)
        out[name + "alive"] = alive
        out[name + "w_in"] = torch.where(units[:, None], p[name + "w_in"], 0.0)
        out[name + "b_in"] = torch.where(units, p[name + "b_in"], 0.0)
        out[name + "w_out"] = torch.where(units[:, :, None], p[name + "w_out"], 0.0)
    return out


def living(ffn: FeedForward, p: Parameters, name: str) -> Int[Tensor, " M"]:
    """Units left of every model's layer after `prune`: what static sparsity there is."""
    alive = p.get(name + "alive")
    if alive is None:
        return torch.full((len(p[name + "w_in"]),), ffn.width)
    left: Tensor = alive.sum((1, 2)) + ffn.always_on
    return left
