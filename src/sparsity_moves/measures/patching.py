"""Activation patching on add-7: does a component's output, taken from another input, take the answer with it?

Two inputs need different operations (+1 and +0) at the same read-out. The recipient is run with the donor's
attention, or FFN, output in place of its own, at that read-out alone (Meng et al. 2022; Smithline & Mascioli 2026).
With the input digit matched, the two differ in the operation; not matched, the digit may come along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.measures.tidy import Columns, Subject, tidy
from sparsity_moves.model import forward
from sparsity_moves.model.routing import pick
from sparsity_moves.tasks import Addition, generator

PAIRS = 256
"""Pairs drawn for each read-out, operation and way of matching."""
CARRY, COPY = 1, 2
"""The two operations that a read-out beyond the first can need (`Addition.operation_names`)."""


def draw(
    digit: Int[Tensor, " N"], operation: Int[Tensor, " N"], wanted: int, pairs: int, source: torch.Generator
) -> Int[Tensor, "2 pairs"]:
    """Recipients that need the wanted operation, and for each a donor with its digit that needs another.

    Uniform over the recipients that have such a donor, then over their donors.
    """
    can = (operation == wanted).nonzero()[:, 0]
    other = (operation != wanted).nonzero()[:, 0]
    other = other[digit[other].argsort(stable=True)]
    count = digit[other].bincount(minlength=10)
    start = count.cumsum(0) - count
    can = can[count[digit[can]] > 0]
    u = torch.rand(2, pairs, generator=source, dtype=torch.double)
    recipient = can[(u[0] * len(can)).long()]
    theirs = digit[recipient]
    return torch.stack([recipient, other[start[theirs] + (u[1] * count[theirs]).long()]])


def patched(
    subject: Subject, component: str, position: int, pairs: Int[Tensor, "2 M K"]
) -> Int[Tensor, "M K"]:
    """The recipients' answers at a read-out, with the donors' output of a component there, in every layer."""
    task = subject.architecture.task
    (place, held) = task.read_out[position], tuple(range(task.length))
    models = torch.arange(pairs.shape[1], device=pairs.device)[:, None]
    edits = {}
    for number, layer in enumerate(subject.trace.layers):
        last = number == subject.architecture.depth - 1
        output = pick(getattr(layer, component), (place,), task.read_out if last else held)
        edits[f"{number}.{component}"] = _at(None if last else place, output[models, pairs[1]])
    tokens = subject.sequences.tokens[models, pairs[0]]
    trace = forward(subject.architecture, subject.parameters, tokens, edits=edits, positions=(place,))
    return trace.logits[:, :, 0].argmax(-1)


def _at(place: int | None, donor: Float[Tensor, "M K 1 D"]) -> Callable[[Tensor], Tensor]:
    def edit(output: Tensor) -> Tensor:
        if place is None:  # the last layer answers at this read-out only
            return donor
        output = output.clone()
        output[:, :, place] = donor[:, :, 0]
        return output

    return edit


@torch.no_grad()
def patching(subject: Subject, pairs: int = PAIRS) -> list[Columns]:
    """How often the answer goes with a component's output.

    Columns: `component` (attention | ffn), `position` (read-out), `operation` (the recipient's, so both directions
    are there), `matched` (whether the donor has the recipient's input digit; beyond the last digit all match), and
    shares of the pairs: `flip_rate` (the answer becomes the donor's right one, and was not before: the authors'
    count), `operation_rate` (it becomes what the donor's operation makes of the recipient's own digit, and was not
    before), `change_rate` (it becomes another, whichever).

    Raises `UserError` for other tasks, where an operation is no function of a digit.
    """
    task, sequences = subject.architecture.task, subject.sequences
    if not isinstance(task, Addition):
        raise UserError(f"activation patching matches the digits of add7, which {task.name} has not")
    digits = torch.nn.functional.pad(sequences.tokens[:, :, : task.digits], (0, 1))  # (M, N, digits + 1)
    models = torch.arange(len(subject.seeds), device=digits.device)[:, None]
    whole = subject.trace.logits.argmax(-1)
    ways = [(operation, matched) for operation in (CARRY, COPY) for matched in (True, False)]
    positions = task.scored[1:]
    found: dict[str, list[Tensor]] = {"flip_rate": [], "operation_rate": [], "change_rate": []}
    drawn = {
        position: _drawn(subject, digits[:, :, position], position, ways, pairs) for position in positions
    }
    for component in ("attention", "ffn"):
        for position in positions:
            digit, operation = digits[:, :, position], sequences.operations[:, :, position]
            recipient, donor = drawn[position]
            now = patched(subject, component, position, drawn[position])
            before = whole[models, recipient, position]
            right = sequences.targets[models, donor, position]
            meant = (digit[models, recipient] + (operation[models, donor] == CARRY)) % 10
            for name, is_so in (
                ("flip_rate", (now == right) & (before != right)),
                ("operation_rate", (now == meant) & (before != meant)),
                ("change_rate", now != before),
            ):
                found[name].append(is_so.unflatten(1, (len(ways), pairs)).double().mean(-1))
    axes: dict[Any, Any] = {
        ("component", "position"): [(c, p) for c in ("attention", "ffn") for p in positions],
        ("operation", "matched"): ways,
    }
    return tidy(axes, **{name: torch.stack(values, 1) for name, values in found.items()})


def _drawn(
    subject: Subject, digit: Int[Tensor, "M N"], position: int, ways: list[tuple[int, bool]], pairs: int
) -> Int[Tensor, "2 M drawn"]:
    """Every model's pairs at one read-out; its seed decides them, at whichever moment."""
    digits, operations = digit.cpu(), subject.sequences.operations[:, :, position].cpu()
    models = {seed: m for m, seed in enumerate(subject.seeds)}
    of = {seed: _pairs(digits[m], operations[m], seed, position, ways, pairs) for seed, m in models.items()}
    return torch.stack([of[seed] for seed in subject.seeds], 1).to(digit.device)


def _pairs(
    digit: Tensor, operation: Tensor, seed: int, position: int, ways: list[tuple[int, bool]], pairs: int
) -> Int[Tensor, "2 drawn"]:
    """The pairs of one model at one read-out."""
    return torch.cat(
        [
            draw(
                digit if matched else torch.zeros_like(digit),
                operation,
                wanted,
                pairs,
                generator(seed, "patching", position, wanted, int(matched)),
            )
            for wanted, matched in ways
        ],
        dim=1,
    )
