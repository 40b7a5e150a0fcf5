"""Every arm there is, as often as the first result's: each control beside the arm that it doubts.

Does the router learn at all (Switch gates, no balance loss, hash routing)? Is it sparsity or capacity (narrow,
per-active-matched)? Is it one expert a token (top-2)? `arms` says what each is.
"""

from __future__ import annotations

from sparsity_moves.names import Profile
from sparsity_moves.studies.arms import ARMS, arm
from sparsity_moves.studies.redistribution import SEEDS
from sparsity_moves.studies.study import Study, seeds

SMOKE = ("moe_switch", "moe_hash", "moe_top2")
"""Enough to see that controls run."""


def study(profile: Profile = "paper") -> Study:
    """Every control of every task, at its seeds."""
    return Study(
        "controls",
        tuple(
            (name, arm(name, profile, task, seed))
            for task, number in SEEDS[profile].items()
            for name in (SMOKE if profile == "smoke" else ARMS)
            for seed in seeds(number)
        ),
    )
