"""Histogram counting: at every position, how often does this symbol stand in the sequence?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch

from sparsity_moves.errors import UserError
from sparsity_moves.tasks.task import Sequences, Task, generator


@cache
def compositions(length: int) -> dict[tuple[int, ...], float]:
    """Every way the sampler can cut `length` into counts, with its exact probability.

    The first part is uniform on 1..n-1, the rest is cut the same way, and a rest of 1 ends it (after Behrens,
    Biggio & Zdeborová 2024). A part as long as the whole never occurs.
    """
    if length == 1:
        return {(1,): 1.0}
    return {
        (first, *rest): p / (length - 1)
        for first in range(1, length)
        for rest, p in compositions(length - first).items()
    }


@dataclass(frozen=True)
class Histogram(Task):
    """Sequences of `length` symbols; the answer at each position is its symbol's count, class = count - 1."""

    alphabet: int = 32
    symbols: int = 10
    """Symbols in a sequence."""

    name: ClassVar[str] = "histogram"
    causal: ClassVar[bool] = False
    tied: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 2 <= self.symbols <= 14:
            raise UserError(f"a histogram sequence has 2 to 14 symbols, not {self.symbols}")
        if self.alphabet < self.symbols:
            raise UserError(
                f"an alphabet of {self.alphabet} cannot give {self.symbols} different symbols, "
                f"which a sequence of {self.symbols} may need"
            )

    @property
    def vocabulary(self) -> int:
        return self.alphabet

    @property
    def classes(self) -> int:
        return self.symbols

    @property
    def length(self) -> int:
        return self.symbols

    @property
    def read_out(self) -> tuple[int, ...]:
        return tuple(range(self.symbols))

    @property
    def scored(self) -> tuple[int, ...]:
        return self.read_out

    @property
    def operation_names(self) -> tuple[str, ...]:
        return tuple(f"count {n}" for n in range(1, self.symbols + 1))

    def sample(self, size: int, source: torch.Generator) -> Sequences:
        """`size` sequences: cut the length into counts, give each a symbol of its own, shuffle."""
        cuts = compositions(self.symbols)
        # Which part each place belongs to, one row a composition.
        parts = torch.tensor([[i for i, n in enumerate(cut) for _ in range(n)] for cut in cuts])
        counts = torch.tensor([[n for n in cut for _ in range(n)] for cut in cuts])
        chosen = torch.multinomial(
            torch.tensor(list(cuts.values())), size, replacement=True, generator=source
        )
        names = torch.rand(size, self.alphabet, generator=source).argsort(dim=1)
        order = torch.rand(size, self.symbols, generator=source).argsort(dim=1)
        tokens = names.gather(1, parts[chosen].gather(1, order))
        targets = counts[chosen].gather(1, order) - 1
        return Sequences(tokens, targets, targets)

    def training_pool(self, seed: int, draw: int, size: int) -> Sequences:
        return self.sample(size, generator(seed, "train", draw))

    def evaluation(self, seed: int, size: int) -> Sequences:
        return self.sample(size, generator(seed, "evaluation"))

    def chance(self) -> dict[str, float]:
        share = [0.0] * (self.symbols + 1)
        for cut, p in compositions(self.symbols).items():
            for n in cut:
                share[n] += p * n / self.symbols
        return {"any one answer": 1 / self.symbols, "most frequent answer": max(share)}

    def render(self, sequences: Sequences, index: int) -> str:
        symbols = sequences.tokens[index].tolist()
        letters = [chr(ord("A") + s) if self.alphabet <= 26 else f"{s:02d}" for s in symbols]
        counts = (sequences.targets[index] + 1).tolist()
        return f"{' '.join(letters)} → {' '.join(map(str, counts))}"
