"""Modular addition: read a, b and "=", answer (a + b) mod p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsity_moves.errors import UserError
from sparsity_moves.tasks.task import Sequences, Task, generator


@dataclass(frozen=True)
class ModularAddition(Task):
    """All p² pairs, of which a fixed share is trained on (Nanda et al. 2023; 30 % in the paper).

    The split is a uniform permutation of the pairs by the run's seed.
    """

    modulus: int = 113
    train_fraction: float = 0.3

    name: ClassVar[str] = "modular_addition"
    causal: ClassVar[bool] = False
    tied: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 2 <= self.modulus <= 512:
            raise UserError(
                f"the modulus is from 2 to 512, since all pairs are enumerated; not {self.modulus}"
            )
        if not 0 < self.train_fraction < 1:
            raise UserError(f"the train fraction lies strictly between 0 and 1, not {self.train_fraction}")
        if not 0 < self.train_pairs < self.modulus**2:
            raise UserError(
                f"a train fraction of {self.train_fraction} of {self.modulus**2} pairs leaves one side empty"
            )

    @property
    def vocabulary(self) -> int:
        return self.modulus + 1

    @property
    def classes(self) -> int:
        return self.vocabulary  # the paper's unembedding has a row for "=", too

    @property
    def length(self) -> int:
        return 3

    @property
    def read_out(self) -> tuple[int, ...]:
        return (2,)

    @property
    def scored(self) -> tuple[int, ...]:
        return (0,)

    @property
    def operation_names(self) -> tuple[str, ...]:
        return "a + b < p", "a + b ≥ p"

    @property
    def train_pairs(self) -> int:
        return int(self.modulus**2 * self.train_fraction)

    def evaluation(self, seed: int, size: int) -> Sequences:
        pair = torch.arange(self.modulus**2)
        a, b = pair // self.modulus, pair % self.modulus
        tokens = torch.stack([a, b, torch.full_like(a, self.modulus)], dim=1)
        order = torch.randperm(len(tokens), generator=generator(seed, "split"))
        held_out = torch.ones(len(tokens), dtype=torch.bool)
        held_out[order[: self.train_pairs]] = False
        return Sequences(
            tokens, ((a + b) % self.modulus)[:, None], (a + b >= self.modulus).long()[:, None], held_out
        )

    def training_pool(self, seed: int, draw: int, size: int) -> Sequences:
        pairs = self.evaluation(seed, size)
        assert pairs.held_out is not None
        return pairs[~pairs.held_out]

    def chance(self) -> dict[str, float]:
        return {"any one answer": 1 / self.modulus}  # every residue is the sum of exactly p pairs

    def render(self, sequences: Sequences, index: int) -> str:
        a, b, _ = sequences.tokens[index].tolist()
        return f"{a} + {b} = {int(sequences.targets[index, 0])} (mod {self.modulus})"
