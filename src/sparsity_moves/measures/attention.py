"""Attention patterns: where does each head look, and does what it looks at depend on the answer?

A pattern is one distribution over tokens for every input, head and read-out; what is kept is its mean. On add-7 the
means are taken by carry length too: a head that looks for a carry looks elsewhere when there is one. The histogram's
positions are alike, so there the question is what a head gives to a token of the same symbol and to one of another.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_moves.measures.tidy import Columns, Subject, tidy
from sparsity_moves.model.routing import pick

RELATIONS = ("self", "same", "other")
"""Of the token that is looked at to the one that looks: itself, another of its symbol, one of another symbol."""


@torch.no_grad()
def attention_patterns(subject: Subject) -> list[Columns]:
    """Mean attention weights of every head.

    Columns: `layer`, `head`, `position` (read-out, of the scored ones), `key` (the token's place in the sequence;
    those that a causal model does not see are left out), `carry` (carry length, add-7's; None is all inputs),
    `relation` (histogram alone, where position and key are None: see `RELATIONS`), `weight` (the mean over inputs; of
    a relation, over all tokens that stand in it), None where no input belongs to the group.

    Source: Smithline & Mascioli 2026, attention patterns.
    """
    architecture = subject.architecture
    task, held = architecture.task, tuple(range(architecture.task.length))
    read = tuple(task.read_out[r] for r in task.scored)
    patterns = []
    for number, layer in enumerate(subject.trace.layers):
        assert layer.pattern is not None, "a trace of the reference has patterns"
        last = number == architecture.depth - 1
        patterns.append(pick(layer.pattern, read, task.read_out if last else held, 3))  # (M, N, H, R, T)
    heads = [(layer, head) for layer in range(architecture.depth) for head in range(architecture.heads)]
    if task.name == "histogram":
        kinds = relations(subject, read)
        weights = torch.cat([_by_relation(pattern, kinds) for pattern in patterns], 1)  # (M, layers · H, K)
        return tidy({("layer", "head"): heads, "relation": list(RELATIONS)}, weight=weights)
    seen = [(r, k) for r, place in enumerate(read) for k in held if not (task.causal and k > place)]
    places = [task.scored[r] for r, _ in seen]
    groups = carries(subject)
    means = torch.cat(
        [_by_group(pattern, [*groups.values()]) for pattern in patterns], 1
    )  # (M, layers · H, G, R, T)
    at, to = (torch.tensor(index, device=means.device) for index in zip(*seen, strict=True))
    axes: dict[Any, Any] = {
        ("layer", "head"): heads,
        "carry": list(groups),
        ("position", "key"): list(zip(places, to.tolist(), strict=True)),
    }
    return tidy(axes, weight=means[..., at, to])


def carries(subject: Subject) -> dict[int | None, Bool[Tensor, "M N"]]:
    """Which inputs are averaged together: all, and on add-7 those of each carry length."""
    task, operations = subject.architecture.task, subject.sequences.operations
    found: dict[int | None, Tensor] = {None: torch.ones_like(operations[:, :, 0], dtype=torch.bool)}
    if task.name == "add7":
        length = (operations == 1).sum(-1)
        found |= {carry: length == carry for carry in range(len(task.scored))}
    return found


def relations(subject: Subject, read: tuple[int, ...]) -> Bool[Tensor, "K M N R T"]:
    """For every pair of a read-out and a token, which relation they stand in."""
    tokens = subject.sequences.tokens
    alike = tokens[:, :, list(read), None] == tokens[:, :, None]
    own = torch.tensor(read, device=tokens.device)[:, None] == torch.arange(
        tokens.shape[2], device=tokens.device
    )
    own = own.expand_as(alike)
    return torch.stack([own, alike & ~own, ~alike])


def _by_group(
    pattern: Float[Tensor, "M N H R T"], groups: list[Bool[Tensor, "M N"]]
) -> Float[Tensor, "M H G R T"]:
    wide = pattern.double()
    means = [(wide * of[:, :, None, None, None]).sum(1) / of.sum(1)[:, None, None, None] for of in groups]
    return torch.stack(means, 2)


def _by_relation(
    pattern: Float[Tensor, "M N H R T"], kinds: Bool[Tensor, "K M N R T"]
) -> Float[Tensor, "M H K"]:
    wide = pattern.double()
    means = [(wide * of[:, :, None]).sum((1, 3, 4)) / of.sum((1, 2, 3))[:, None] for of in kinds]
    return torch.stack(means, 2)
