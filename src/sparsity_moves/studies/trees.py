"""Where does the computation go when the FFN is a forest? Trees of height 2 to 8, against MoE, narrow and dense.

Twice, because trees of other heights cannot match both: `tree` has the dense layer's units in total, `tree_active`
one expert's units on its paths (and so more in total, the more the higher its trees). `tree_balanced` is `tree` with
its φ after the sum. At height 3, and under their plain names, they are nearly an MoE's size in both. A tree of height
8 has 511 units, so on add-7, whose dense layer has 256, the one tree that there is at least is twice as large.
"""

from __future__ import annotations

from dataclasses import replace

from sparsity_moves.studies.arms import arm
from sparsity_moves.studies.study import Study, seeds
from sparsity_moves.training import Profile, Spec, TaskName

BESIDE = ("dense", "narrow", "moe", "moe_frozen", "moe_switch")
"""What trees are held against."""
HEIGHTS: dict[Profile, dict[str, tuple[int, ...]]] = {
    "smoke": {"tree": (2, 3), "tree_balanced": (3,), "tree_active": (3,)},
    "laptop": {"tree": (2, 3, 5, 7), "tree_balanced": (3, 7), "tree_active": (5,)},
    "paper": {
        "tree": (2, 3, 4, 5, 6, 7, 8),
        "tree_balanced": (3, 5, 7),
        "tree_active": (3, 5, 7),
    },
}
TASKS: tuple[TaskName, ...] = ("add7", "modular_addition", "histogram")
SEEDS: dict[Profile, int] = {"smoke": 2, "laptop": 3, "paper": 20}


def study(profile: Profile = "paper", *, number_of_seeds: int | None = None) -> Study:
    """Every run once; an arm of trees that are not of height 3 is called `tree_height5` and so on."""
    number = SEEDS[profile] if number_of_seeds is None else number_of_seeds
    runs: dict[Spec, str] = {}
    for task in TASKS:
        points = [(name, arm(name, profile, task, 0)) for name in BESIDE]
        for name, heights in HEIGHTS[profile].items():
            for height in heights:
                label = name if height == 3 else f"{name}_height{height}"
                points.append((label, arm(name, profile, task, 0, tree_depth=height)))
        for label, spec in points:
            for seed in seeds(number):
                runs.setdefault(replace(spec, seed=seed), label)
    return Study("trees", tuple((label, spec) for spec, label in runs.items()))
