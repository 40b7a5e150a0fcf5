"""Where does the computation go when the FFN is a forest? Trees of height 2 to 8, against MoE, narrow and dense.

Twice, because trees of other heights cannot match both: `tree` has the dense layer's units in total, `tree_active`
one expert's units on its paths (and so more in total, the more the higher its trees). `tree_balanced` is `tree` with
its φ after the sum. At height 3, and under their plain names, they are nearly an MoE's size in both. A tree of height
8 has 511 units, so on add-7, whose dense layer has 256, the one tree that there is at least is twice as large.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import polars as pl

from sparsity_moves.names import Profile, TaskName, results_folder
from sparsity_moves.store import Store
from sparsity_moves.studies import redistribution
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.arms import TREES, arm
from sparsity_moves.studies.evidence import Evidence
from sparsity_moves.studies.study import Study, seeds
from sparsity_moves.training import Spec

BESIDE = ("dense", "narrow", "moe", "moe_frozen", "moe_switch")
"""What trees are held against; at the laptop profile those that the first result trains anyway."""
Heights = dict[str, tuple[int, ...]]
_PAPER: Heights = {"tree": (2, 3, 4, 5, 6, 7, 8), "tree_balanced": (3, 5, 7), "tree_active": (3, 5, 7)}
_SMOKE: Heights = {"tree": (2, 3), "tree_balanced": (3,), "tree_active": (3,)}
HEIGHTS: dict[Profile, dict[TaskName, Heights]] = {
    "smoke": {"add7": _SMOKE, "modular_addition": _SMOKE, "histogram": _SMOKE},
    "laptop": {
        "add7": {"tree": (3, 5, 7), "tree_balanced": (5,), "tree_active": (5,)},
        "modular_addition": {"tree": (5,)},
        "histogram": {"tree": (5,)},
    },
    "paper": {"add7": _PAPER, "modular_addition": _PAPER, "histogram": _PAPER},
}
SEEDS: dict[Profile, int] = {"smoke": 2, "laptop": 3, "paper": 20}


def label(name: str, height: int) -> str:
    """An arm of trees that are not of height 3 is called `tree_height5` and so on."""
    return name if height == 3 else f"{name}_height{height}"


def height(arm: str) -> int:
    """The height that a label names."""
    found = re.search(r"_height(\d+)$", arm)
    return int(found[1]) if found else 3


def study(profile: Profile = "paper", *, number_of_seeds: int | None = None) -> Study:
    """Every run once."""
    number = SEEDS[profile] if number_of_seeds is None else number_of_seeds
    beside = BESIDE if profile != "laptop" else ("dense", "narrow", "moe", "moe_frozen")
    runs: dict[Spec, str] = {}
    for task, own in HEIGHTS[profile].items():
        points = [(name, arm(name, profile, task, 0)) for name in beside]
        points += [
            (label(name, h), arm(name, profile, task, 0, tree_depth=h))
            for name, heights in own.items()
            for h in heights
        ]
        for name, spec in points:
            for seed in seeds(number):
                runs.setdefault(replace(spec, seed=seed), name)
    return Study("trees", tuple((name, spec) for spec, name in runs.items()))


def gather(profile: Profile) -> Argument:
    """The tables for the chapters of trees: the full-scale ones where they hold trees, else the reader's own."""
    from sparsity_moves import studies

    paper = Store(results_folder("paper"))
    main = Evidence.of(paper) if paper.tables else None
    if profile == "paper" and main is not None:
        return Argument(main)
    if main is not None and not set(main.rows["arm"].drop_nulls()) & set(TREES):
        main = None
    results = [studies.run(each) for each in (redistribution.study(profile), study(profile))]
    own = Evidence(
        pl.concat([each.moments for each in results], how="diagonal_relaxed"),
        {spec.spec_id: json.loads(spec.canonical) for each in results for spec in each.study.specs},
        pl.concat([each.curves for each in results], how="diagonal_relaxed").unique(("spec_id", "step")),
    )
    return Argument(own) if main is None else Argument(main, own)
