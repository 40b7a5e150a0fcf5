"""What every task gives: sequences, targets, read-out positions, operation labels and chance lines."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def generator(seed: int, *stream: str | int) -> torch.Generator:
    """An explicit source of randomness for one purpose of one run.

    The stream's words go into the seed, so that drawing more for one purpose never shifts another, and two
    arms that share a seed share their initial attention, their data and their split.
    """
    text = "/".join(map(str, (seed, *stream)))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


@dataclass(frozen=True)
class Sequences:
    """N inputs with the answers at the R read-out positions; a fleet's (`stacked`) have an axis M in front."""

    tokens: Int[Tensor, "*M N T"]
    targets: Int[Tensor, "*M N R"]
    operations: Int[Tensor, "*M N R"]
    """Which operation the answer needs (an index into `Task.operation_names`; -1 where none is asked)."""
    held_out: Bool[Tensor, "*M N"] | None = None
    """True where training never sees the input; None where the task holds nothing out."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Tensor) -> Sequences:
        held_out = None if self.held_out is None else self.held_out[index]
        return Sequences(self.tokens[index], self.targets[index], self.operations[index], held_out)

    def to(self, device: torch.device | str) -> Sequences:
        held_out = None if self.held_out is None else self.held_out.to(device)
        return Sequences(
            self.tokens.to(device), self.targets.to(device), self.operations.to(device), held_out
        )


def stacked(each: list[Sequences]) -> Sequences:
    """A fleet's sequences: every tensor with a leading axis M."""
    held_out = [s.held_out for s in each if s.held_out is not None]
    return Sequences(
        torch.stack([s.tokens for s in each]),
        torch.stack([s.targets for s in each]),
        torch.stack([s.operations for s in each]),
        torch.stack(held_out) if held_out else None,
    )


class Task(ABC):
    """A synthetic task. All attributes are known before any sequence is drawn."""

    name: ClassVar[str]
    causal: ClassVar[bool]
    tied: ClassVar[bool]
    """Whether the unembedding is the token embedding, transposed."""

    @property
    @abstractmethod
    def vocabulary(self) -> int: ...

    @property
    @abstractmethod
    def classes(self) -> int:
        """How many answers a read-out can give (equal to `vocabulary` where the unembedding is tied)."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens the model reads."""

    @property
    @abstractmethod
    def read_out(self) -> tuple[int, ...]:
        """Positions at which an answer is read, and at which the loss is taken."""

    @property
    @abstractmethod
    def scored(self) -> tuple[int, ...]:
        """Which of the read-outs count in the accuracy (indices into `read_out`)."""

    @property
    @abstractmethod
    def operation_names(self) -> tuple[str, ...]: ...

    @abstractmethod
    def training_pool(self, seed: int, draw: int, size: int) -> Sequences:
        """The inputs that training picks batches from; `draw` counts how often the pool was redrawn."""

    @abstractmethod
    def evaluation(self, seed: int, size: int) -> Sequences:
        """The inputs that accuracies are measured on: all of them where the task is finite."""

    @abstractmethod
    def chance(self) -> dict[str, float]:
        """Accuracy of strategies that compute nothing, by name, exactly; the strongest comes last."""

    @abstractmethod
    def render(self, sequences: Sequences, index: int) -> str:
        """One input and its answer, as a person would write it."""
