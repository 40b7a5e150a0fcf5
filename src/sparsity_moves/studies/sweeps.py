"""What else might have done it? One setting varied at a time, everything else as in the arm's own run.

A point whose settings make it an arm that has a name stands under that name (`moe` with two experts open is
`moe_top2`; at its task's default it is `moe`), any other under the arm's with a suffix (`moe_e8`, `dense_norm`).
So the same run is trained once, and a name means one setting of a task.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sparsity_moves.names import Profile, TaskName
from sparsity_moves.studies.arms import ARMS, arm
from sparsity_moves.studies.study import Study, seeds
from sparsity_moves.training import Spec

TASKS: tuple[TaskName, ...] = ("add7", "modular_addition", "histogram")
FOUR = ("dense", "glu", "moe", "moe_glu")
"""The paper's own."""
MAIN = ("dense", "narrow", "glu", "moe", "moe_frozen", "moe_switch", "moe_glu")


@dataclass(frozen=True)
class Family:
    """Points of one setting."""

    arms: tuple[str, ...]
    points: dict[str, dict[str, Any]]
    """The suffix of an arm's name, and what `arm` is given."""
    tasks: tuple[TaskName, ...] = TASKS


FAMILIES: dict[str, Family] = {
    # How sparse, at the same width in total; narrow is one expert without the others.
    "experts": Family(
        ("moe", "moe_switch", "moe_glu", "narrow"), {f"e{n}": {"experts": n} for n in (1, 2, 4, 8, 16)}
    ),
    # All experts open is the dense layer again, but for the gates.
    "top_k": Family(
        ("moe", "moe_frozen", "moe_switch", "moe_glu"), {f"top{k}": {"top_k": k} for k in (1, 2, 3, 4)}
    ),
    "model_width": Family(FOUR, {f"d{d}": {"d_model": d, "width": 4 * d} for d in (64, 128, 256)}),
    "depth": Family(("dense", "moe"), {f"depth{n}": {"depth": n} for n in (1, 2, 3, 4)}),
    "norm": Family(FOUR, {"norm": {"norm": "rms"}}),
    "activation": Family(
        ("dense", "moe", "glu"),
        {
            "relu": {"activation": "relu"},
            "gelu": {"activation": "gelu"},
            "silu": {"activation": "silu"},
            "linear": {"activation": "none"},
        },
    ),
    "balance": Family(
        ("moe", "moe_switch"), {f"b{w:g}": {"balance_weight": w} for w in (0.0, 0.001, 0.01, 0.1, 1.0)}
    ),
    # Does any regulariser do what sparsity does?
    "weight_decay": Family(("dense",), {f"wd{w:g}": {"weight_decay": w} for w in (0.1, 0.5, 1.0, 2.0)}),
    "dropout": Family(("dense",), {f"dropout{p:g}": {"dropout": p} for p in (0.1, 0.3)}),
    "beta2": Family(FOUR, {f"beta{b:g}": {"beta2": b} for b in (0.98, 0.999)}),
    # Do a GPU's rounded products change what is found?
    "precision": Family(("dense", "moe"), {"fp32": {"precision": "fp32"}}, ("modular_addition", "histogram")),
    # Can the one component learn the task without the other, and where does the computation go then?
    "frozen": Family(
        ("dense", "moe"),
        {"attention_frozen": {"frozen": "attention"}, "ffn_frozen": {"frozen": "ffn"}},
    ),
    # Ones digits 0 to 2 do not carry: a carry is never seen in training.
    "held_out": Family(MAIN, {"held_out": {"train_below": 3}}, ("add7",)),
}

SEEDS: dict[Profile, dict[TaskName, int]] = {
    "smoke": {"add7": 2, "modular_addition": 2, "histogram": 2},
    "laptop": {"add7": 3, "modular_addition": 3, "histogram": 3},
    "paper": {"add7": 20, "modular_addition": 5, "histogram": 5},
}


@cache
def known(profile: Profile, task: TaskName) -> dict[Spec, str]:
    """The arms that have a name, by their run of seed 0."""
    return {arm(name, profile, task, 0): name for name in ARMS}


def study(family: str, profile: Profile = "paper") -> Study:
    """One family's runs, and its arms' own. What two arms share (one expert is the dense layer) is in it once."""
    of = FAMILIES[family]
    points: dict[str, dict[str, Any]] = {"": {}, **of.points}
    runs: dict[Spec, str] = {}
    for task in of.tasks:
        for name in of.arms:
            for suffix, settings in points.items():
                spec = arm(name, profile, task, 0, **settings)
                label = known(profile, task).get(spec, f"{name}_{suffix}")
                for seed in seeds(SEEDS[profile][task]):
                    runs.setdefault(replace(spec, seed=seed), label)
    return Study(family, tuple((label, spec) for spec, label in runs.items()))


def studies(profile: Profile = "paper") -> list[Study]:
    """One study a family."""
    return [study(family, profile) for family in FAMILIES]
