"""The first result: the same task, six FFNs; which part of the model computes the answer?"""

from __future__ import annotations

from sparsity_moves.names import Profile, TaskName
from sparsity_moves.studies.arms import arm
from sparsity_moves.studies.study import Study, seeds

ARMS = ("dense", "glu", "narrow", "moe", "moe_frozen", "moe_glu")

SEEDS: dict[Profile, dict[TaskName, int]] = {
    "smoke": {"add7": 2, "modular_addition": 2, "histogram": 2},
    "laptop": {"add7": 6, "modular_addition": 3, "histogram": 3},
    "paper": {"add7": 64, "modular_addition": 20, "histogram": 20},
}


def study(
    profile: Profile = "laptop",
    *,
    experts: int = 4,
    width: int | None = None,
    top_k: int = 1,
    number_of_seeds: int | None = None,
) -> Study:
    """Six arms on three tasks. `width` is the dense arm's; it and the seeds are the profile's unless given."""
    return Study(
        "redistribution",
        tuple(
            (name, arm(name, profile, task, seed, experts=experts, width=width, top_k=top_k))
            for task, own in SEEDS[profile].items()
            for name in ARMS
            for seed in seeds(own if number_of_seeds is None else number_of_seeds)
        ),
    )
