"""How large and how long: smoke (seconds, for tests), laptop (minutes, two CPU cores), paper (the protocol).

The laptop profile keeps the paper's add-7 as it is, only shorter, since all arms converge early. Modular
addition and histogram are smaller problems there, in minibatches and at a higher learning rate, chosen so that
every arm still converges. In all three the learning rate falls to zero at the end, which the paper's does not:
it takes the noise of the last steps away, which a shorter run cannot wait out. The book says so under each figure.
"""

from __future__ import annotations

from typing import Any, get_args

from sparsity_moves.errors import UserError
from sparsity_moves.names import Profile, TaskName

PROFILES: tuple[Profile, ...] = get_args(Profile)

SEEDS = (42, 137, 256, 512, 1024)
"""The paper's five."""

ADD7: dict[str, Any] = {
    "digits": 3,
    "addend": 7,
    "d_model": 64,
    "width": 256,
    "activation": "silu",
    "batch": 128,
    "weight_decay": 0.01,
    "clip": 1.0,
}
MODULAR: dict[str, Any] = {"activation": "gelu", "batch": 0, "weight_decay": 1.0}
HISTOGRAM: dict[str, Any] = {"activation": "gelu", "weight_decay": 0.0, "pool": 10_000, "redraw_every": 50}

SETTINGS: dict[tuple[Profile, TaskName], dict[str, Any]] = {
    ("paper", "add7"): {**ADD7, "steps": 10_000, "evaluate_every": 200, "probe": 256},
    ("paper", "modular_addition"): {
        **MODULAR,
        "precision": "tf32",
        "modulus": 113,
        "train_fraction": 0.3,
        "d_model": 128,
        "width": 512,
        "steps": 40_000,
        "evaluate_every": 100,
    },
    ("paper", "histogram"): {
        **HISTOGRAM,
        "precision": "tf32",
        "alphabet": 32,
        "symbols": 10,
        "d_model": 128,
        "width": 512,
        "batch": 0,
        "steps": 1_000,
        "evaluate_every": 10,
        "evaluation": 3_000,
    },
    ("laptop", "add7"): {**ADD7, "steps": 1_600, "decay": 500, "evaluate_every": 100},
    ("laptop", "modular_addition"): {
        **MODULAR,
        "modulus": 59,
        "train_fraction": 0.7,
        "d_model": 64,
        "width": 256,
        "batch": 256,
        "learning_rate": 3e-3,
        "beta2": 0.98,
        "steps": 2_000,
        "decay": 300,
        "evaluate_every": 100,
    },
    ("laptop", "histogram"): {
        **HISTOGRAM,
        "alphabet": 16,
        "symbols": 8,
        "d_model": 64,
        "width": 256,
        "batch": 64,
        "learning_rate": 3e-3,
        "steps": 1_200,
        "decay": 600,
        "evaluate_every": 100,
        "evaluation": 1_000,
    },
    ("smoke", "add7"): {**ADD7, "digits": 2, "d_model": 32, "width": 64, "steps": 60, "evaluate_every": 20},
    ("smoke", "modular_addition"): {
        **MODULAR,
        "modulus": 7,
        "train_fraction": 0.6,
        "d_model": 32,
        "width": 64,
        "steps": 60,
        "evaluate_every": 20,
    },
    ("smoke", "histogram"): {
        **HISTOGRAM,
        "alphabet": 8,
        "symbols": 5,
        "d_model": 32,
        "width": 64,
        "pool": 500,
        "batch": 64,
        "steps": 60,
        "evaluate_every": 20,
        "evaluation": 200,
    },
}


def settings(profile: Profile, task: TaskName) -> dict[str, Any]:
    """The settings of every arm of a task, before the arm's own."""
    if profile not in PROFILES:
        raise UserError(f"no profile is called '{profile}'; there are {', '.join(PROFILES)}")
    if (profile, task) not in SETTINGS:
        raise UserError(f"no task is called '{task}'; there are add7, modular_addition, histogram")
    return {"profile": profile, "task": task, **SETTINGS[profile, task]}
