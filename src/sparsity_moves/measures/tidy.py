"""What the measures share: a fleet as they see it, and the rows that they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sparsity_moves.model import Architecture, Parameters, Trace, forward
from sparsity_moves.tasks import Sequences

Columns = dict[str, list[Any]]
"""One model's rows, column by column."""
Axis = str | tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """Models of one shape at one moment, with the inputs that each is measured on (`stacked`)."""

    architecture: Architecture
    parameters: Parameters
    sequences: Sequences
    seeds: list[int]

    @cached_property
    @torch.no_grad()
    def trace(self) -> Trace:
        """What they compute, at the read-outs, undisturbed."""
        return forward(self.architecture, self.parameters, self.sequences.tokens)


def tidy(axes: Mapping[Axis, Sequence[Any]], **values: Tensor) -> list[Columns]:
    """A row for every combination of the axes' labels, last axis fastest; one table a model.

    Args:
        axes: a column's name and its labels, or several columns' names and their labels together.
        values: (M, *axes), one number a row. Integers stay integers; of other numbers single precision is kept,
            which is what the models have; NaN is a number that is not there, and becomes None.
    """
    places = list(product(*axes.values()))
    keys: Columns = {}
    for i, names in enumerate(axes):
        for j, name in enumerate(names if isinstance(names, tuple) else (names,)):
            keys[name] = [place[i][j] if isinstance(names, tuple) else place[i] for place in places]
    numbers = {name: plain(value) for name, value in values.items()}
    models = len(next(iter(numbers.values())))
    return [{**keys, **{name: rows[m] for name, rows in numbers.items()}} for m in range(models)]


def plain(value: Tensor) -> list[list[Any]]:
    """Numbers of each model, as Python knows them."""
    flat = value.flatten(1).cpu()
    if not flat.is_floating_point():
        whole: list[list[Any]] = flat.tolist()
        return whole
    return [[None if x != x else x for x in row] for row in flat.double().float().tolist()]


def joined(*tables: list[Columns]) -> list[Columns]:
    """The rows of several tables of the same models, one after the other; what a table has no column for is None."""
    names = list(dict.fromkeys(name for table in tables for name in table[0]))
    out = []
    for parts in zip(*tables, strict=True):
        rows: Columns = {name: [] for name in names}
        for part in parts:
            size = len(next(iter(part.values())))
            for name in names:
                rows[name] += part.get(name, [None] * size)
        out.append(rows)
    return out
