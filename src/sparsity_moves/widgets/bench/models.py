"""Trained models as a page reads them: what each is, and its numbers as one script that is loaded when asked for.

A script, since a page opened from the disk may load no other file. In it is base64 of little-endian bytes: the
parameters in single precision, in the trainer's order; the router's initial weights, where it has one; and the
histogram's evaluation sequences, a byte a symbol, which no browser could draw as PyTorch draws them.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsity_moves import studies
from sparsity_moves.errors import UserError
from sparsity_moves.figures.theme import arm_style
from sparsity_moves.figures.words import MOMENT_NAMES
from sparsity_moves.model import Parameters
from sparsity_moves.names import Moment, Profile
from sparsity_moves.studies.arms import arm
from sparsity_moves.studies.keeping import OPENED
from sparsity_moves.tasks import Sequences
from sparsity_moves.training import Spec
from sparsity_moves.training.profiles import SEEDS
from sparsity_moves.widgets.lab.interface import TASKS, TENSORS, setup_of

REGISTER = "sparsityMovesModels"
"""The page's global object in which a script leaves its model."""


@dataclass(frozen=True)
class Model:
    """One trained model at one moment."""

    spec: Spec
    arm: str
    moment: Moment
    parameters: Parameters

    @property
    def name(self) -> str:
        return f"{self.spec.task}-{self.arm}-{self.moment}"

    @property
    def inputs(self) -> Sequences:
        """What it is measured on: every input, or the sequences drawn for its evaluation."""
        return self.spec.task_object.evaluation(self.spec.seed, self.spec.evaluation)

    @property
    def facts(self) -> dict[str, Any]:
        """What the page must know before it loads the numbers."""
        return {
            "name": self.name,
            "task": self.spec.task,
            "label": f"{arm_style(self.arm).label}, {MOMENT_NAMES[self.moment].removeprefix('the ')}",
            "short": arm_style(self.arm).label,
            "setup": setup_of(self.spec),
            "router": self.spec.architecture.ffn.scores,
            "bytes": len(self.content),
        }

    @property
    def content(self) -> bytes:
        """The numbers, as the module's docstring says."""
        parts = [
            self.parameters[name].numpy().astype("<f4").tobytes()
            for name in TENSORS
            if name in self.parameters
        ]
        if self.spec.architecture.ffn.scores:
            initial = self.spec.architecture.initialise(self.spec.seed)["0.ffn.router"]
            parts.append(initial.numpy().astype("<f4").tobytes())
        if self.spec.task == "histogram":
            parts.append(self.inputs.tokens.numpy().astype(np.uint8).tobytes())
        return b"".join(parts)

    @property
    def text(self) -> str:
        """The numbers in base64."""
        return base64.b64encode(self.content).decode()

    @property
    def script(self) -> str:
        """The numbers as a script that leaves them in the page."""
        return f'(globalThis.{REGISTER} ??= {{}})["{self.name}"] = "{self.text}";\n'


def stored(profile: Profile) -> list[Model]:
    """The models that the bench can open of a profile's store: those that the chapters look into, first seed."""
    store = studies.store(profile)
    found = []
    for task in TASKS:
        for name in OPENED:
            spec = arm(name, profile, task, SEEDS[0])  # type: ignore[arg-type]
            try:
                setup_of(spec)
            except UserError:
                continue  # the bench has no such layer
            for moment in store.kept(spec.spec_id):
                found.append(Model(spec, name, moment, store.checkpoint(spec.spec_id, moment)))  # type: ignore[arg-type]
    return found


def models(profile: Profile) -> list[Model]:
    """The published models, or where there are none the reader's own of this profile."""
    return stored("paper") or stored(profile)


def page_config(offered: list[Model]) -> dict[str, Any]:
    """What the page must know: of each task its sizes and chance lines, and of each model its facts."""
    tasks = {}
    for model in offered:
        spec = model.spec
        task = spec.task_object
        tasks[spec.task] = {
            "sizes": setup_of(spec)[1:3],
            "length": task.length,
            "vocabulary": task.vocabulary,
            "classes": task.classes,
            "readOut": list(task.read_out),
            "scored": list(task.scored),
            "chance": task.chance(),
        }
    return {"tasks": tasks, "models": [model.facts for model in offered]}


def to_json(config: dict[str, Any]) -> str:
    """On one line, and able to stand inside of a script element."""
    return json.dumps(config, separators=(",", ":")).replace("</", "<\\/")
