"""Component ablation, looked at closely: by read-out, by operation, by carry length, and head by head."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_moves.measures.ablation import Component, Replacement, replacement
from sparsity_moves.measures.tidy import Columns, Subject, tidy
from sparsity_moves.model import forward
from sparsity_moves.model.transformer import Edit

Group = tuple[int | None, int | None, int | None]
"""Read-out, operation and carry length of a group of answers; None is all of them."""


def groups(subject: Subject) -> dict[Group, Bool[Tensor, "M N R"]]:
    """Which answers are averaged together, by group.

    Groups of one read-out hold it whether it is scored or not (add-7's final EOS is not); all others hold scored
    answers only. The carry length is add-7's: how many digits beyond the first are reached by a carry, from 0 to
    the number of digits.
    """
    task, operations = subject.architecture.task, subject.sequences.operations
    reads = torch.arange(operations.shape[2], device=operations.device)
    scored = torch.zeros_like(operations, dtype=torch.bool)
    scored[:, :, list(task.scored)] = True
    found: dict[Group, Tensor] = {(None, None, None): scored}
    every = range(len(reads)) if len(reads) > 1 else ()
    for r in every:
        found[r, None, None] = (reads == r).expand_as(scored)
    for operation in range(len(task.operation_names)):
        found[None, operation, None] = scored & (operations == operation)
    if task.name == "add7":
        carries = (operations == 1).sum(-1, keepdim=True)
        for length in range(len(task.scored)):
            found[None, None, length] = scored & (carries == length)
            for r in every:
                found[r, None, length] = (reads == r) & (carries == length)
    return found


def head_edits(subject: Subject, layer: int, head: int, how: Replacement) -> dict[str, Edit]:
    """Take one head's mixture of values away: zero, or its mean over inputs at each position."""
    heads = subject.trace.layers[layer].heads  # (M, N, R, H, K)
    mean = heads[:, :, :, head].mean(1, keepdim=True)
    return {f"{layer}.heads": partial(_without, head, torch.zeros_like(mean) if how == "zero" else mean)}


def _without(head: int, instead: Tensor, heads: Tensor) -> Tensor:
    heads = heads.clone()
    heads[:, :, :, head] = instead
    return heads


@torch.no_grad()
def ablation_parts(subject: Subject) -> list[Columns]:
    """Per-token accuracy of every group of answers, with nothing, a component or a head taken away.

    Columns: `component` (none | attention | ffn | head), `layer` and `head` (of a head; a component is taken away
    in every layer), `how` (zero | mean | resample), `position` (read-out: 0 is the ones digit), `operation`,
    `carry`, each None where all are taken together, and `accuracy`, None where no input belongs to the group.

    Source: Smithline & Mascioli 2026, component ablation by position and by carry length, head-wise ablation.
    """
    architecture, sequences = subject.architecture, subject.sequences
    of = groups(subject)
    member = torch.stack(list(of.values()), -1).flatten(1, 2).float()  # (M, N·R, G)
    size = member.sum(1)

    def accuracy(edits: dict[str, Edit] | None) -> Float[Tensor, "M G"]:
        logits = (
            forward(architecture, subject.parameters, sequences.tokens, edits=edits).logits
            if edits
            else subject.trace.logits
        )
        right = (logits.argmax(-1) == sequences.targets).flatten(1).float()
        return (right[:, None] @ member)[:, 0] / size  # counts below 2^24 are exact in any order; 0/0 is NaN

    tables = [accuracy(None)]
    labels: list[tuple[str, int | None, int | None, str | None]] = [("none", None, None, None)]
    components: tuple[Component, ...] = ("attention", "ffn")
    ways: tuple[Replacement, ...] = ("zero", "mean", "resample")
    for component in components:
        for how in ways:
            edits = replacement(component, how, architecture, subject.trace, subject.seeds)
            tables.append(accuracy(dict(edits)))
            labels.append((component, None, None, how))
    for layer in range(architecture.depth):
        for head in range(architecture.heads):
            for how in ways[:2]:
                tables.append(accuracy(head_edits(subject, layer, head, how)))
                labels.append(("head", layer, head, how))
    axes: dict[Any, Any] = {
        ("component", "layer", "head", "how"): labels,
        ("position", "operation", "carry"): list(of),
    }
    return tidy(axes, accuracy=torch.stack(tables, 1))
