"""Histogram strategies: is the count there after attention, or does the FFN make it?

Relation-based counting compares the symbols of a sequence in attention, so that the count can be read off the
residual stream behind it; inventory-based counting gathers them there and counts in the FFN (Behrens, Biggio &
Zdeborová 2024). A linear read-out of the count behind embedding, attention and FFN tells which lifts it more.
"""

from __future__ import annotations

from typing import Any

import torch

from sparsity_moves.measures.probes import Recipe, read
from sparsity_moves.measures.tidy import Columns, Subject, tidy

READ_OUT = Recipe("read-out", 0.1, 1000, 512, False, 0.7, anneal=True)
"""Ours: a twentieth of the work of the authors' code (2,000 steps on everything), and as far: their rate does not
fall, and does not come to rest."""


@torch.no_grad()
def strategy(subject: Subject, recipe: Recipe = READ_OUT) -> list[Columns]:
    """How well the answer is read off the residual stream as it grows, and what that says of the strategy.

    Columns: `site` (position: the read-out is known and nothing else | embedding | attention, and all before it |
    ffn, and all before it), `accuracy` of a linear read-out there, `lift` over the site before, and `strategy`, which
    is the model's: relation where attention lifts more than the FFN, else inventory.
    """
    trace, targets = subject.trace, subject.sequences.targets
    places = {
        "embedding": trace.embedding,
        "attention": trace.residual - trace.layers[-1].ffn,
        "ffn": trace.residual,
    }
    found = read(places, targets, subject.architecture.task.classes, recipe, subject.seeds)
    accuracy = torch.stack([found[name].mean(1) for name in found], 1)  # (M, sites)
    lift = torch.full_like(accuracy, torch.nan)
    lift[:, 2:] = accuracy[:, 2:] - accuracy[:, 1:-1]
    axes: dict[Any, Any] = {"site": list(found)}
    tables = tidy(axes, accuracy=accuracy, lift=lift)
    for table in tables:
        _, _, attention, ffn = table["lift"]
        table["strategy"] = ["relation" if attention > ffn else "inventory"] * len(found)
    return tables
