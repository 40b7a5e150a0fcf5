"""A fleet: many models of one shape, trained as one program.

All models' trained parameters lie in one buffer, a row a model, and so do their gradients. Clipping is then a
norm a row, and AdamW one call. What a model becomes depends on its spec alone, not on its neighbours. On a GPU a
step is recorded once, as a CUDA graph, and replayed. All that changes is a state, from which training can go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_moves import kernels
from sparsity_moves.kernels.precision import beside
from sparsity_moves.model import Parameters, forward, stack
from sparsity_moves.names import MOMENTS
from sparsity_moves.training import data
from sparsity_moves.training.dropout import Dropout
from sparsity_moves.training.evaluation import look
from sparsity_moves.training.recording import Recording
from sparsity_moves.training.spec import Spec

GROKKED = 0.99
"""A model has grokked when its accuracy on held-out pairs passes this (Smithline & Mascioli 2026)."""

Curve = dict[str, list[int | float | None]]
"""Columns of the curve; None where the task has no such number."""

State = dict[str, Tensor]
"""All that a training needs to go on from where it is, on the CPU."""


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
        names = self.spec.trained()
        self.names, self.shapes = names, [start[name].shape[1:] for name in names]
        sizes = [shape.numel() for shape in self.shapes]
        # Rows end with full vector registers, or AdamW would round their last elements by the number of rows.
        self.padding = torch.zeros(len(specs), -sum(sizes) % 64, device=self.device)
        rows = [start[name].flatten(1).to(self.device) for name in names]
        self.flat = torch.cat([*rows, self.padding], dim=1)
        self.gradient = torch.zeros_like(self.flat)
        self.fixed = {name: tensor.to(self.device) for name, tensor in start.items() if name not in names}
        self.parameters = {name: view.requires_grad_() for name, view in self.views(self.flat).items()}
        self.trained = [self.parameters[name] for name in names]
        self.parameters |= self.fixed
        self.flat.grad = self.gradient
        self.steps_done = 0
        recorded = self.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            [self.flat],
            lr=torch.tensor(self.spec.learning_rate, device=self.device)
            if recorded
            else self.spec.learning_rate,
            betas=(self.spec.beta1, self.spec.beta2),
            weight_decay=self.spec.weight_decay,
            fused=True,
            capturable=recorded,
        )
        # As the optimiser would make it at its first step; so a state can be put in place before that.
        self.moments = {
            "step": torch.zeros((), device=self.device),
            "exp_avg": torch.zeros_like(self.flat),
            "exp_avg_sq": torch.zeros_like(self.flat),
        }
        self.optimiser.state[self.flat] = self.moments
        wanted = self.spec.balance_weight and self.spec.balance_positions == "all"
        positions = range(self.architecture.task.length) if wanted else self.architecture.task.read_out
        self.balance_positions = tuple(positions) if self.spec.balance_weight else ()
        self.kernels = kernels.choose(self.architecture, self.device)
        self.dropout = Dropout(specs, self.device) if self.spec.dropout else None
        self.recording: Recording | None = None

    def views(self, flat: Float[Tensor, "M P"]) -> Parameters:
        """The trained parameters in a buffer like `flat`, by name."""
        out, offset = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            out[name] = flat[:, offset : offset + shape.numel()].unflatten(1, shape).detach()
            offset += shape.numel()
        return out

    def loss(self, tokens: Tensor, targets: Tensor) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
        """Each model's cross-entropy over its read-outs, and the loss it is trained on (with the balance)."""
        trace = forward(
            self.architecture,
            self.parameters,
            tokens,
            edits=None if self.dropout is None else self.dropout.edits(),
            balance_positions=self.balance_positions,
            kernels=self.kernels,
        )
        entropy = kernels.cross_entropy(trace, targets).flatten(1).mean(1)
        return entropy, entropy + self.spec.balance_weight * trace.balance

    def step(self, tokens: Tensor, targets: Tensor) -> Float[Tensor, " M"]:
        """One update; gives each model's cross-entropy before it (on a GPU, until the next step overwrites it)."""
        if self.spec.decay or self.spec.warm_up:
            self.set_learning_rate()
        if self.dropout is not None:
            self.dropout.at(self.steps_done)
        if self.device.type == "cuda":
            if self.recording is None:
                always = None if self.spec.batch or self.spec.redraw_every else tokens
                self.kernels = kernels.choose(self.architecture, self.device, always)
                changing = [self.flat, *self.moments.values()]
                self.recording = Recording(self.update, changing, tokens, targets, self.spec.precision)
            entropy = self.recording.replay(tokens, targets)
        else:
            entropy = self.update(tokens, targets)
        self.steps_done += 1
        return entropy

    def update(self, tokens: Tensor, targets: Tensor) -> Float[Tensor, " M"]:
        """Loss, gradients, clipping and AdamW: what a step does, recorded or not; gives the cross-entropy before."""
        entropy, loss = self.loss(tokens, targets)
        # A router that nothing trains has the gradient zero.
        gradients = torch.autograd.grad(loss.sum(), self.trained, allow_unused=True, materialize_grads=True)
        torch.cat([*(g.flatten(1) for g in gradients), self.padding], dim=1, out=self.gradient)
        if self.spec.clip:
            norm = torch.linalg.vector_norm(self.gradient, dim=1, keepdim=True)
            self.gradient.mul_((self.spec.clip / (norm + 1e-6)).clamp(max=1.0))
        self.optimiser.step()
        return entropy.detach()

    def set_learning_rate(self) -> None:
        """That of the next step, where a recorded step reads it, too."""
        group, rate = self.optimiser.param_groups[0], self.spec.rate(self.steps_done)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def state(self) -> State:
        """All that a step changes."""
        mine = {"flat": self.flat, "steps_done": torch.tensor(self.steps_done), **self.moments}
        return {f"fleet.{name}": tensor.detach().to("cpu", copy=True) for name, tensor in mine.items()}

    @torch.no_grad()
    def resume(self, state: State) -> None:
        """Go on from a state, in the buffers that a step, recorded or not, works on."""
        self.flat.copy_(state["fleet.flat"])
        for name, tensor in self.moments.items():
            tensor.copy_(state[f"fleet.{name}"])
        self.steps_done = int(state["fleet.steps_done"])

    def snapshot(self, model: int, flat: Float[Tensor, "M P"] | None = None) -> Parameters:
        """One model's parameters as they are now, or as they are in a copy of `flat`, on the CPU."""
        every = self.fixed | self.views(self.flat if flat is None else flat)
        return {name: every[name][model].detach().cpu().clone() for name in self.parameters}


class _Ledger:
    """What training keeps of a fleet: its curves, and its parameters at the moments, on its own device."""

    columns = ("loss", "accuracy", "test_accuracy", "no_ffn_accuracy", "no_attention_accuracy")

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        models = len(fleet.specs)
        self.steps: list[int] = []
        self.rows: list[Float[Tensor, "columns M"]] = []
        self.best = torch.full((models,), -math.inf, dtype=torch.double, device=fleet.device)
        self.at: dict[str, Tensor] = {
            name: torch.zeros(models, dtype=torch.long, device=fleet.device) for name in MOMENTS[:2]
        }
        self.flat: dict[str, Tensor] = {name: fleet.flat.clone() for name in MOMENTS[:2]}

    def note(self, step: int, loss: Tensor, seen: dict[str, Tensor], score: Float[Tensor, " M"]) -> None:
        nothing = torch.full_like(score, math.nan)
        self.steps.append(step)
        self.rows.append(
            torch.stack([loss.double(), *(seen.get(name, nothing) for name in self.columns[1:])])
        )
        self.keep("first_best", step, score > self.best)
        self.best = torch.maximum(self.best, score)
        if self.fleet.spec.task == "modular_addition":
            self.keep("grokked", step, (score > GROKKED) & (self.at["grokked"] == 0))

    def keep(self, moment: str, step: int, where: Bool[Tensor, " M"]) -> None:
        self.at[moment].masked_fill_(where, step)
        torch.where(where[:, None], self.fleet.flat, self.flat[moment], out=self.flat[moment])

    def state(self) -> State:
        """Curves so far, and the best so far."""
        mine = {"steps": torch.tensor(self.steps), "rows": torch.stack(self.rows), "best": self.best}
        mine |= {f"at.{name}": steps for name, steps in self.at.items()}
        mine |= {f"flat.{name}": flat for name, flat in self.flat.items()}
        return {f"ledger.{name}": tensor.to("cpu", copy=True) for name, tensor in mine.items()}

    def resume(self, state: State) -> None:
        """Go on from a state."""
        mine = {name: tensor.to(self.fleet.device, copy=True) for name, tensor in state.items()}
        self.steps, self.rows = mine["ledger.steps"].tolist(), list(mine["ledger.rows"])
        self.best = mine["ledger.best"]
        self.at = {name: mine[f"ledger.at.{name}"] for name in self.at}
        self.flat = {name: mine[f"ledger.flat.{name}"] for name in self.flat}

    def runs(self) -> list[Run]:
        """One a model, with everything on the CPU."""
        fleet = self.fleet
        curve = torch.stack(self.rows).cpu()
        at = {name: steps.tolist() for name, steps in self.at.items()}
        tests = fleet.spec.has_test
        runs = []
        for model, spec in enumerate(fleet.specs):
            values = {name: curve[:, i, model].tolist() for i, name in enumerate(self.columns)}
            if not tests:
                values["test_accuracy"] = [None] * len(self.steps)
            moments: dict[str, Moment] = {
                name: Moment(at[name][model], fleet.snapshot(model, self.flat[name]))
                for name in MOMENTS[:2]
                if at[name][model]
            }
            moments["final"] = Moment(self.steps[-1], fleet.snapshot(model))
            runs.append(Run(spec, {"step": list(self.steps), **values}, moments))
        return runs


def train(
    specs: list[Spec],
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda step: None,
    *,
    start: State | None = None,
    keep: Callable[[State], None] | None = None,
    keep_every: float = 60.0,
) -> list[Run]:
    """Train one fleet to its last step.

    Args:
        specs: runs that differ in their seeds only.
        device: where.
        progress: hears every step looked at.
        start: a state that `keep` was given of the same fleet; from nothing unless given. On a CPU the runs are,
            bit by bit, those of a training that was never interrupted.
        keep: is given the state after a look, where so long has passed since the last time.
        keep_every: seconds between two states.
    """
    fleet = Fleet(specs, device)
    sequences = data.evaluation(specs, fleet.device)
    ledger = _Ledger(fleet)
    if start is not None:
        fleet.resume(start)
        ledger.resume(start)
    kept = time.monotonic()
    batches = data.batches(specs, fleet.device, after=fleet.steps_done)
    for step, batch in enumerate(batches, start=fleet.steps_done + 1):
        loss = fleet.step(*batch)
        if step % fleet.spec.evaluate_every and step != fleet.spec.steps:
            continue
        picks = data.probe(specs, step, sequences.tokens.shape[1]) if fleet.spec.probe else None
        picks = None if picks is None else picks.to(fleet.device)
        with beside(fleet.spec.precision):
            seen = look(fleet.spec, fleet.parameters, sequences, picks, fleet.kernels)
        ledger.note(step, loss, *seen)
        if fleet.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # or the progress told would be that of the launches
        if keep is not None and step < fleet.spec.steps and time.monotonic() - kept >= keep_every:
            keep(fleet.state() | ledger.state())
            kept = time.monotonic()
        progress(step)
    return ledger.runs()
