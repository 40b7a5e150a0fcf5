"""A run, fully described: frozen, hashable, and addressed by its content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sparsity_moves.errors import UserError
from sparsity_moves.model import Architecture, FeedForward
from sparsity_moves.model.architecture import Activation, Gate, Nonlinearity, Norm, Router, known
from sparsity_moves.names import Profile, TaskName
from sparsity_moves.tasks import TASKS, Task

PROTOCOL = 2
"""Part of every spec_id. Raised when a change to the code changes what a spec's run computes."""

Precision = Literal["fp32", "tf32"]
Frozen = Literal["none", "attention", "ffn"]
DropoutAt = Literal["outputs", "hidden"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Every setting of one run. A setting that the task does not have is None."""

    profile: Profile
    seed: int
    # the task
    task: TaskName
    digits: int | None = None
    addend: int | None = None
    modulus: int | None = None
    train_fraction: float | None = None
    train_below: int | None = None
    alphabet: int | None = None
    symbols: int | None = None
    # the model
    d_model: int = 64
    heads: int = 4
    depth: int = 1
    norm: Norm = "none"
    # its FFN
    width: int = 256
    experts: int = 1
    top_k: int = 1
    router: Router = "none"
    gate: Gate = "renormalised"
    gated: bool = False
    activation: Activation = "silu"
    tree_depth: int = 0
    """Levels below a tree's root; 0 where the FFN is no forest."""
    always_on: int = 0
    nonlinearity: Nonlinearity = "node"
    # training
    frozen: Frozen = "none"
    """A component that keeps its initial weights."""
    precision: Precision = "fp32"
    """`tf32` lets a GPU round the factors of its products to ten bits of mantissa (TF32, or fp16 with a scale); on a
    CPU it changes nothing."""
    steps: int
    batch: int
    """Sequences a step, drawn with replacement from the pool; 0 is the whole pool, every step."""
    pool: int = 0
    """Sequences in the pool, where the task samples them (histogram)."""
    redraw_every: int = 0
    """Steps between two draws of the pool; 0 is never."""
    learning_rate: float = 1e-3
    decay: int = 0
    """Last steps, over which the learning rate falls linearly to zero; 0 is never, as in the paper."""
    warm_up: int = 0
    """First steps, over which the learning rate rises linearly; 0 is none, as in the paper."""
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 0.0
    """Largest gradient norm of one model; 0 is no clipping."""
    balance_weight: float = 0.0
    balance_positions: Literal["all", "read_out"] = "all"
    dropout: float = 0.0
    """Probability with which a unit is zero in training; the others grow by what is lost on average."""
    dropout_at: DropoutAt = "outputs"
    """`outputs`: attention's and the FFN's, before they join the residual stream; `hidden`: the FFN's own units."""
    # looking
    evaluate_every: int
    evaluation: int = 0
    """Sequences to measure on, where the task samples them (histogram); finite tasks use every input."""
    probe: int = 0
    """Sequences drawn at each look to judge the best checkpoint (256 for add-7 in the paper); 0 is all."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"no task is called '{self.task}'; there are {', '.join(TASKS)}")
        if self.steps < 1 or self.evaluate_every < 1:
            raise UserError("a run takes at least one step, and looks at itself at least every so many")
        if not 0 <= self.decay <= self.steps:
            raise UserError(f"the learning rate can fall over 0 to all {self.steps} steps, not {self.decay}")
        if not 0 <= self.warm_up <= self.steps:
            raise UserError(
                f"the learning rate can rise over 0 to all {self.steps} steps, not {self.warm_up}"
            )
        if self.batch < 0 or self.pool < 0:
            raise UserError("batch and pool are numbers of sequences, so not negative")
        known("place of dropout", self.dropout_at, DropoutAt)
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is a probability from 0 to below 1, not {self.dropout}")
        if self.task == "histogram" and not (self.pool and self.evaluation):
            raise UserError(
                "the histogram task samples its sequences: give the sizes of its pool and evaluation"
            )
        if (
            not self.architecture.ffn.scores and self.balance_weight
        ):  # the architecture refuses what cannot be
            raise UserError(f"a balance loss needs a router that scores experts, not '{self.router}'")

    @cached_property
    def task_object(self) -> Task:
        """The task with this spec's settings."""
        kind = TASKS[self.task]
        names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
        every = {f.name for t in TASKS.values() for f in dataclasses.fields(t)}  # type: ignore[arg-type]
        given = {name: getattr(self, name) for name in every if getattr(self, name) is not None}
        if foreign := sorted(set(given) - names):
            raise UserError(f"the task {self.task} has no setting '{foreign[0]}'")
        return kind(**given)

    @cached_property
    def architecture(self) -> Architecture:
        ffn = FeedForward(
            self.width,
            self.experts,
            self.top_k,
            self.router,
            self.gate,
            self.gated,
            self.activation,
            self.tree_depth,
            self.always_on,
            self.nonlinearity,
        )
        return Architecture(self.task_object, self.d_model, self.heads, self.depth, self.norm, ffn)

    @cached_property
    def spec_id(self) -> str:
        """Sixteen hexadecimal digits of the settings' hash: the run's address in the store."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:16]

    @property
    def canonical(self) -> str:
        """The settings that differ from their defaults: one that is new and off changes no run's address."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        told = {f.name: given[f.name] for f in dataclasses.fields(self) if given[f.name] != f.default}
        return json.dumps({"protocol": PROTOCOL, **told}, sort_keys=True)

    @property
    def has_test(self) -> bool:
        """Whether the run is measured on inputs that it is not trained on."""
        return self.task != "add7" or self.train_below is not None

    def rate(self, done: int) -> float:
        """Learning rate of the step after so many: constant between its rise and its fall, never zero."""
        rise = (done + 1) / self.warm_up if self.warm_up else 1.0
        fall = (self.steps - done) / self.decay if self.decay else 1.0
        return self.learning_rate * min(1.0, rise, fall)

    def trained(self) -> list[str]:
        """Names of the parameters that training may change."""
        names = self.architecture.trained()
        return [name for name in names if f".{self.frozen}." not in name]

    @property
    def shape(self) -> Spec:
        """What runs of one fleet have in common: everything but the seed."""
        return dataclasses.replace(self, seed=0)
