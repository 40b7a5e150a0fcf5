"""What a reader can set in the lab, and the run that a setting stands for.

`settings.json` lists the controls. What they leave open (batch, learning rate, steps ...) is the laptop profile's,
with the changes below; the page is given the whole of it, so that no number is written down twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsity_moves.errors import UserError
from sparsity_moves.names import TaskName
from sparsity_moves.studies import arm
from sparsity_moves.studies.arms import TREES
from sparsity_moves.training import Spec

CONTROLS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "settings.json").read_text())
Setting = dict[str, str | int | float]

ROUTING = {
    "learned": {"router": "learned", "gate": "renormalised"},
    "frozen": {"router": "frozen", "gate": "renormalised"},
    "switch": {"router": "learned", "gate": "switch"},
    "switch_frozen": {"router": "frozen", "gate": "switch"},
    "hash": {"router": "hash", "gate": "renormalised"},
}
CHANGES: dict[TaskName, dict[str, Any]] = {
    "add7": {
        "learning_rate": 3e-3,
        "warm_up": 300,
        "decay": 1_000,
        "steps": 2_000,
        "beta2": 0.99,
        "evaluate_every": 25,
    },
    "modular_addition": {"evaluate_every": 50},
    "histogram": {"evaluate_every": 25},
}
"""Where the lab's run differs from the laptop profile's: add-7 learns in a fifth of the paper's steps.

Its rate rises first: attention settles on a token within the first ten steps, and if these are large, it stays with
some seeds on a wrong one.
"""
MANY = 8
MANY_CHANGES: dict[str, Any] = {"learning_rate": 4e-3, "warm_up": 200, "decay": 1_200, "steps": 2_400}
"""What more changes in add-7 with more than MANY experts, where the shorter run leaves some seeds stuck."""


def defaults(task: TaskName = "add7") -> Setting:
    """The setting that the lab opens with; each task has a weight decay of its own."""
    values = {control["name"]: control["value"] for control in CONTROLS}
    own = arm("dense", "laptop", task, 0).weight_decay
    decays = next(control["values"] for control in CONTROLS if control["name"] == "weight_decay")
    return values | {
        "task": task,
        "weight_decay": decays[decays.index(own)],
    }  # 1, not 1.0, as the link writes it


def checked(setting: Setting) -> Setting:
    """The setting, completed with the defaults. Raises `UserError` for a name or value that no control has."""
    values = {control["name"]: control["value"] for control in CONTROLS}
    for name, value in setting.items():
        allowed = next((c["values"] for c in CONTROLS if c["name"] == name), None)
        if allowed is None:
            raise UserError(f"the lab has no control called '{name}'; there are {', '.join(values)}")
        if value not in allowed:
            raise UserError(f"{name} in the lab is one of {', '.join(map(str, allowed))}, not {value}")
        values[name] = value
    return defaults(values["task"]) | setting


def spec_of(setting: Setting) -> Spec:
    """The run of a setting. Raises `UserError` where the lab has no such setting."""
    s = checked(setting)
    if str(s["ffn"]) in TREES:
        return _spec_of_trees(s)
    task, experts, top_k = s["task"], int(s["experts"]), int(s["top_k"])
    name = (
        ("moe_glu" if s["ffn"] != "mlp" else "moe")
        if experts > 1
        else ("glu" if s["ffn"] != "mlp" else "dense")
    )
    own: dict[str, Any] = dict(CHANGES[task]) | {"weight_decay": float(s["weight_decay"])}  # type: ignore[index]
    if task == "add7" and experts > MANY:
        own |= MANY_CHANGES
    if s["ffn"] == "bilinear":
        own["activation"] = "none"
    if experts > 1:
        own |= ROUTING[str(s["routing"])] | {"balance_positions": "read_out"}
        own["top_k"] = 1 if s["routing"] == "hash" else min(top_k, experts)
        own["balance_weight"] = 0.0 if s["routing"] == "hash" else float(s["balance"])
    return arm(name, "laptop", task, int(s["seed"]), experts=experts, width=int(s["width"]), **own)  # type: ignore[arg-type]


def _spec_of_trees(s: Setting) -> Spec:
    depth = int(s["tree_depth"])
    own = dict(CHANGES[s["task"]]) | {"weight_decay": float(s["weight_decay"])}  # type: ignore[index]
    width = int(s["trees"]) * (2 ** (depth + 1) - 1)
    name, seed = str(s["ffn"]), int(s["seed"])
    return arm(name, "laptop", s["task"], seed, experts=1, width=width, tree_depth=depth, **own)  # type: ignore[arg-type]


def _schedule(spec: Spec) -> dict[str, Any]:
    return {"steps": spec.steps, "rate": spec.learning_rate, "rise": spec.warm_up, "fall": spec.decay}


def page_config() -> dict[str, Any]:
    """All that the page must know: the controls, and for each task its sizes, its run and its chance lines."""
    tasks = {}
    for control in CONTROLS:
        if control["name"] != "task":
            continue
        for name in control["values"]:
            spec, many = (spec_of({"task": name, "experts": experts}) for experts in (1, 16))
            task = spec.task_object
            tasks[name] = {
                "sizes": {
                    "add7": [0, 0],
                    "modular_addition": [spec.modulus, round(100 * (spec.train_fraction or 0))],
                    "histogram": [spec.alphabet, spec.symbols],
                }[name],
                "length": task.length,
                "vocabulary": task.vocabulary,
                "classes": task.classes,
                "readOut": list(task.read_out),
                "scored": list(task.scored),
                "causal": task.causal,
                "chance": task.chance(),
                "weightDecay": defaults(name)["weight_decay"],
                "dModel": spec.d_model,
                "heads": spec.heads,
                "activation": spec.activation,
                "batch": spec.batch,
                **_schedule(spec),
                "many": MANY,
                "ofMany": _schedule(many),
                "beta1": spec.beta1,
                "beta2": spec.beta2,
                "clip": spec.clip,
                "every": spec.evaluate_every,
            }
    return {"controls": CONTROLS, "tasks": tasks}
