"""How a tree is used: who visits its nodes, how even its branches are, and whether tokens keep to their paths.

Emergent auto-pruning is a tree that loses use of its branches as it learns. It shows here as nodes that nobody
visits, entropy of the leaves that falls, and balance that falls; all three over training, from `over_training`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.model import Architecture, FeedForward, Parameters, Trace, forward
from sparsity_moves.model.tree import leaves, level, visits
from sparsity_moves.tasks import Sequences
from sparsity_moves.training import Fleet, Spec, accuracy, correct, data


def leaf_entropy(ffn: FeedForward, counts: Int[Tensor, "M P N"]) -> Float[Tensor, "M P"]:
    """Entropy of the leaf that a token reaches, as a share of what even use of all leaves has: 0 to 1."""
    share = counts[..., level(ffn.tree_depth)].double()
    share = share / share.sum(-1, keepdim=True).clamp(min=1)
    entropy: Tensor = torch.special.entr(share).sum(-1)
    return entropy / (ffn.tree_depth * math.log(2))


def balance(counts: Int[Tensor, "M P N"]) -> Float[Tensor, "M P"]:
    """Twice the smaller branch's share, meaned over all choices that tokens made: 1 is even, 0 always one way."""
    children = counts[..., 1:].unflatten(-1, (-1, 2))
    smaller: Tensor = 2 * children.amin(-1).double().sum(-1)
    choices: Tensor = children.double().sum((-1, -2))
    return smaller / choices.clamp(min=1)


def dead(counts: Int[Tensor, "M P N"]) -> Float[Tensor, "M P"]:
    """Share of a tree's nodes that no token visits."""
    return (counts == 0).double().mean(-1)


def path_agreement(
    ffn: FeedForward, before: Int[Tensor, "M B R P"], after: Int[Tensor, "M B R P"]
) -> Float[Tensor, "M P"]:
    """Share of the path below the root that a token has in common with itself at another time: 0 to 1, its mean.

    Two leaves share as many levels as their numbers, of d bits, share from the front.
    """
    assert bool((before >= 0).all() and (after >= 0).all()), (
        "paths that end above a leaf have no leaf to compare"
    )
    shared = torch.zeros_like(before)
    for bit in range(ffn.tree_depth):
        shared += before >> bit == after >> bit
    return shared.double().mean((1, 2)) / ffn.tree_depth


@torch.no_grad()
def walked(architecture: Architecture, p: Parameters, sequences: Sequences) -> list[Tensor]:
    """Every layer's chosen nodes, (M, B, R, W), at the read-outs that count."""
    trace: Trace = forward(architecture, p, sequences.tokens)
    scored = list(architecture.task.scored)
    chosen = []
    for layer in trace.layers:
        assert layer.routing is not None
        # Layers below the last answer at every position, and are used there.
        last = layer is trace.layers[-1]
        chosen.append(layer.routing.chosen[:, :, scored] if last else layer.routing.chosen)
    return chosen


def usage(ffn: FeedForward, chosen: Float[Tensor, "M B R W"]) -> dict[str, Float[Tensor, " M"]]:
    """A layer's numbers, meaned over its trees; `idle_units` are nodes of all trees that no token visits."""
    counts = visits(ffn, chosen)
    return {
        "leaf_entropy": leaf_entropy(ffn, counts).mean(-1),
        "balance": balance(counts).mean(-1),
        "dead_nodes": dead(counts).mean(-1),
        "idle_units": (counts == 0).sum((1, 2)),
    }


def over_training(
    specs: list[Spec], device: torch.device | str = "cpu", every: int | None = None
) -> list[dict[str, Any]]:
    """Train a fleet of trees and look at how they are used: one row a model, layer and look, step 0 among them.

    Columns: `spec_id`, `seed`, `layer`, `step`, `accuracy`, those of `usage`, and `path_agreement` with the look
    before (None at step 0). `every` is the steps between looks; the spec's own unless given.
    """
    fleet = Fleet(specs, device)
    architecture, ffn = fleet.architecture, fleet.architecture.ffn
    sequences = data.evaluation(specs, fleet.device)
    between = every or fleet.spec.evaluate_every
    rows: list[dict[str, Any]] = []
    before: list[Tensor] | None = None

    def look(step: int) -> list[Tensor]:
        right = accuracy(correct(architecture, fleet.parameters, sequences)).tolist()
        ends = []
        for layer, chosen in enumerate(walked(architecture, fleet.parameters, sequences)):
            ends.append(leaves(ffn, chosen))
            numbers: dict[str, list[Any]] = {n: v.tolist() for n, v in usage(ffn, chosen).items()}
            numbers["path_agreement"] = [None] * len(specs)
            if before is not None:
                numbers["path_agreement"] = path_agreement(ffn, before[layer], ends[-1]).mean(-1).tolist()
            rows.extend(
                {
                    "spec_id": spec.spec_id,
                    "seed": spec.seed,
                    "layer": layer,
                    "step": step,
                    "accuracy": right[m],
                }
                | {name: values[m] for name, values in numbers.items()}
                for m, spec in enumerate(specs)
            )
        return ends

    before = look(0)
    for step, batch in enumerate(data.batches(specs, fleet.device), start=1):
        fleet.step(*batch)
        if step % between == 0 or step == fleet.spec.steps:
            before = look(step)
    return rows
