"""A fleet: many models of one shape, trained as one program.

All models' trained parameters lie in one buffer, a row a model, and so do their gradients. Clipping is then a
norm a row, and AdamW one call. What a model becomes depends on its spec alone, not on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.kernels import open_experts
from sparsity_moves.model import Parameters, forward, stack
from sparsity_moves.tasks import Sequences, generator
from sparsity_moves.training import data
from sparsity_moves.training.evaluation import accuracy, correct, exact_match
from sparsity_moves.training.spec import Spec

GROKKED = 0.99
"""A model has grokked when its accuracy on held-out pairs passes this (Smithline & Mascioli 2026)."""

Curve = dict[str, list[int | float | None]]
"""Columns of the curve; None where the task has no such number."""


@dataclass(frozen=True)
class Moment:
    """A model at one of the steps that the book speaks of."""

    step: int
    parameters: Parameters
    """One model's, without the fleet's axis, on the CPU."""


@dataclass(frozen=True)
class Run:
    """What training one spec gave."""

    spec: Spec
    curve: Curve
    moments: dict[str, Moment]
    """`first_best` and `final`, and `grokked` where the model did."""


class Fleet:
    """M models of one shape, at some step of their training."""

    def __init__(self, specs: list[Spec], device: torch.device | str = "cpu") -> None:
        assert len({spec.shape for spec in specs}) == 1, "a fleet's specs differ in their seeds only"
        self.specs, self.device = specs, torch.device(device)
        self.spec, self.architecture = specs[0], specs[0].architecture
        start = stack([self.architecture.initialise(spec.seed) for spec in specs])
        names = self.architecture.trained()
        sizes = [start[name][0].numel() for name in names]
        # Rows end with full vector registers, or AdamW would round their last elements by the number of rows.
        self.padding = torch.zeros(len(specs), -sum(sizes) % 64, device=self.device)
        rows = [start[name].flatten(1).to(self.device) for name in names]
        self.flat = torch.cat([*rows, self.padding], dim=1)
        self.gradient = torch.zeros_like(self.flat)
        self.parameters = {
            name: tensor.to(self.device) for name, tensor in start.items() if name not in names
        }
        offset = 0
        for name, size in zip(names, sizes, strict=True):
            view = self.flat[:, offset : offset + size].view(start[name].shape)
            self.parameters[name] = view.detach().requires_grad_()
            offset += size
        self.trained = [self.parameters[name] for name in names]
        self.flat.grad = self.gradient
        self.steps_done = 0
        self.optimiser = torch.optim.AdamW(
            [self.flat],
            lr=self.spec.learning_rate,
            betas=(self.spec.beta1, self.spec.beta2),
            weight_decay=self.spec.weight_decay,
            fused=True,
        )
        wanted = self.spec.balance_weight and self.spec.balance_positions == "all"
        positions = range(self.architecture.task.length) if wanted else self.architecture.task.read_out
        # With half the blocks open or more, sorting costs more than it saves; on a GPU the loop over groups would.
        by_hand = self.spec.router == "none" or 2 * self.spec.top_k < self.spec.experts
        self.kernel = open_experts if by_hand and self.device.type == "cpu" else None
        self.balance_positions = tuple(positions) if self.spec.balance_weight else ()

    def loss(self, tokens: Tensor, targets: Tensor) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
        """Each model's cross-entropy over its read-outs, and the loss it is trained on (with the balance)."""
        trace = forward(
            self.architecture,
            self.parameters,
            tokens,
            balance_positions=self.balance_positions,
            kernel=self.kernel,
        )
        # Classes before answers: a softmax along the last axis of a dozen is slow on a CPU.
        logits = trace.logits.flatten(1, 2).transpose(1, 2).contiguous()
        entropy = F.cross_entropy(logits, targets.flatten(1), reduction="none").mean(1)
        return entropy, entropy + self.spec.balance_weight * trace.balance

    def step(self, tokens: Tensor, targets: Tensor) -> Float[Tensor, " M"]:
        """One update; gives each model's cross-entropy before it."""
        entropy, loss = self.loss(tokens, targets)
        # A router that nothing trains has the gradient zero.
        gradients = torch.autograd.grad(loss.sum(), self.trained, allow_unused=True, materialize_grads=True)
        torch.cat([*(g.flatten(1) for g in gradients), self.padding], dim=1, out=self.gradient)
        if self.spec.clip:
            norm = torch.linalg.vector_norm(self.gradient, dim=1, keepdim=True)
            self.gradient.mul_((self.spec.clip / (norm + 1e-6)).clamp(max=1.0))
        self.optimiser.param_groups[0]["lr"] = self.learning_rate()
        self.optimiser.step()
        self.steps_done += 1
        return entropy.detach()

    def learning_rate(self) -> float:
        """Constant, then, over the last `decay` steps, falling linearly; it would be zero after the last."""
        left = self.spec.steps - self.steps_done
        return self.spec.learning_rate * (min(1.0, left / self.spec.decay) if self.spec.decay else 1.0)

    def snapshot(self, model: int) -> Parameters:
        """One model's parameters as they are now."""
        return {name: tensor[model].detach().cpu().clone() for name, tensor in self.parameters.items()}


def no(component: str, depth: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Edits that zero one component (`attention` or `ffn`) in every layer."""
    return {f"{layer}.{component}": torch.zeros_like for layer in range(depth)}


def look(fleet: Fleet, sequences: list[Sequences], step: int) -> tuple[dict[str, Tensor], Tensor]:
    """The curve's accuracies at this step, and the score by which the first best checkpoint is judged."""
    architecture, parameters = fleet.architecture, fleet.parameters
    right = correct(architecture, parameters, sequences)
    seen = {
        "accuracy": accuracy(right),
        "no_ffn_accuracy": accuracy(
            correct(architecture, parameters, sequences, no("ffn", architecture.depth))
        ),
        "no_attention_accuracy": accuracy(
            correct(architecture, parameters, sequences, no("attention", architecture.depth))
        ),
    }
    if sequences[0].held_out is not None:
        held_out = torch.stack([s.held_out for s in sequences if s.held_out is not None])
        rows = [accuracy(r[h][None])[0] for r, h in zip(right, held_out, strict=True)]
        score = seen["test_accuracy"] = torch.stack(rows)
    elif fleet.spec.task == "histogram":  # evaluation sequences are drawn apart from any pool
        score = seen["test_accuracy"] = seen["accuracy"]
    elif fleet.spec.probe:
        picks = [
            torch.randint(right.shape[1], (fleet.spec.probe,), generator=generator(spec.seed, "probe", step))
            for spec in fleet.specs
        ]
        score = torch.stack([r[i].all(-1).double().mean() for r, i in zip(right, picks, strict=True)])
    else:
        score = exact_match(right)
    return seen, score


def train(
    specs: list[Spec], device: torch.device | str = "cpu", progress: Callable[[int], None] = lambda step: None
) -> list[Run]:
    """Train one fleet from nothing to its last step. `progress` hears every step looked at."""
    fleet = Fleet(specs, device)
    sequences = data.evaluation(specs, fleet.device)
    names = ("step", "loss", "accuracy", "test_accuracy", "no_ffn_accuracy", "no_attention_accuracy")
    curves: list[Curve] = [{name: [] for name in names} for _ in specs]
    moments: list[dict[str, Moment]] = [{} for _ in specs]
    best = [-math.inf] * len(specs)
    every = fleet.spec.evaluate_every
    for step, (tokens, targets) in enumerate(data.batches(specs, fleet.device), start=1):
        loss = fleet.step(tokens, targets)
        if step % every and step != fleet.spec.steps:
            continue
        seen, score = look(fleet, sequences, step)
        for model, curve in enumerate(curves):
            curve["step"].append(step)
            curve["loss"].append(loss[model].item())
            for name in names[2:]:
                curve[name].append(seen[name][model].item() if name in seen else None)
            if score[model].item() > best[model]:
                best[model] = score[model].item()
                moments[model]["first_best"] = Moment(step, fleet.snapshot(model))
            grokked = fleet.spec.task == "modular_addition" and score[model].item() > GROKKED
            if grokked and "grokked" not in moments[model]:
                moments[model]["grokked"] = Moment(step, fleet.snapshot(model))
            if step == fleet.spec.steps:
                moments[model]["final"] = Moment(step, fleet.snapshot(model))
        progress(step)
    return [Run(*row) for row in zip(specs, curves, moments, strict=True)]
