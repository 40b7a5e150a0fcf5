"""What everyone is given: the settings, the weights to start from, and the batches of one round of steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity_moves.model import Parameters, stack
from sparsity_moves.names import Profile, TaskName
from sparsity_moves.studies import arm
from sparsity_moves.training import Spec
from sparsity_moves.training.data import batches


@dataclass(frozen=True)
class Problem:
    """One arm of one task at the sizes of a profile."""

    task: TaskName
    arm: str
    profile: Profile = "paper"

    def __str__(self) -> str:
        return f"{self.task.replace('_', ' ')}, {self.arm}"

    def specs(self, models: int, steps: int) -> list[Spec]:
        return [arm(self.arm, self.profile, self.task, seed, steps=steps) for seed in range(models)]


@dataclass(frozen=True)
class Work:
    """M models of one shape and their batches. Rounds after the first take the same batches again."""

    specs: list[Spec]
    start: Parameters
    """Every parameter with a leading axis M."""
    tokens: Tensor
    """(S, M, B, T); one S where every step takes all there is."""
    targets: Tensor
    """(S, M, B, R)"""
    steps: int

    @property
    def spec(self) -> Spec:
        return self.specs[0]

    def part(self, first: int, end: int) -> Work:
        """Models from `first` to before `end`, on memory of their own."""
        start = {name: value[first:end].clone() for name, value in self.start.items()}
        tokens, targets = self.tokens[:, first:end].clone(), self.targets[:, first:end].clone()
        return Work(self.specs[first:end], start, tokens, targets, self.steps)

    def on(self, device: str) -> list[tuple[Tensor, Tensor]]:
        """Tokens and targets of every step of a round, on the device."""
        tokens, targets = self.tokens.to(device), self.targets.to(device)
        ready = list(zip(tokens.unbind(), targets.unbind(), strict=True))
        return [ready[step % len(ready)] for step in range(self.steps)]


def work(problem: Problem, models: int, steps: int) -> Work:
    specs = problem.specs(models, steps)
    start = stack([spec.architecture.initialise(spec.seed) for spec in specs])
    taken = batches(specs, torch.device("cpu"))
    drawn = [next(taken) for _ in range(steps if specs[0].batch else 1)]
    tokens, targets = (torch.stack(part) for part in zip(*drawn, strict=True))
    return Work(specs, start, tokens, targets, steps)
