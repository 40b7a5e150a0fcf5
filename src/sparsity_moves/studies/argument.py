"""What the argument's chapters read: the full-scale tables, and beside them the reader's own runs of the same arms.

The full-scale tables are the main ones where they are there, else the reader's take their place. What is trained here
is the reader's part: the controls that the chapters name, on addition, which is learned in seconds. An arm whose
full-scale runs are not stored yet is missing in what is given, and the chapters say so; it joins them when it comes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from sparsity_moves import studies
from sparsity_moves.names import FAMILIES, Family, Profile, results_folder
from sparsity_moves.store import Store, measured
from sparsity_moves.store.families import schema
from sparsity_moves.studies import redistribution, sweep, sweeps
from sparsity_moves.studies.arms import arm
from sparsity_moves.studies.evidence import Absent, Evidence, Families
from sparsity_moves.studies.published import PAPER_MOMENT
from sparsity_moves.studies.study import Study, seeds
from sparsity_moves.studies.verdicts import Board, board

CONTROLS: dict[Profile, dict[str, int]] = {
    "smoke": {"moe_switch": 2, "moe_hash": 2},
    "laptop": {
        **dict.fromkeys(("moe_active", "moe_hash", "moe_hash_context", "moe_switch", "moe_switch_frozen"), 6),
        **dict.fromkeys(("moe_top2", "moe_top2_frozen"), 3),
    },
}
"""Arms and their seeds, beside those of the first result."""
SETTINGS: dict[Profile, tuple[str, ...]] = {"smoke": ("norm",), "laptop": ("norm", "held_out")}
"""Families of `sweeps` that dense and MoE are run at."""
VARIED = 3
"""Seeds of each."""
SETTING = ("digits", "modulus", "symbols")
"""What names the parts of a task's sequences."""


def study(profile: Profile = "laptop") -> Study:
    """The reader's controls. At full scale they stand in the studies `controls` and `sweeps`."""
    own = profile if profile != "paper" else "laptop"
    runs = [
        (name, arm(name, profile, "add7", seed))
        for name, number in CONTROLS[own].items()
        for seed in seeds(number)
    ]
    for family in SETTINGS[own]:
        ((suffix, settings),) = sweeps.FAMILIES[family].points.items()
        if family == "held_out" and profile == "smoke":
            continue
        runs += [
            (f"{name}_{suffix}", arm(name, profile, "add7", seed, **settings))
            for name in ("dense", "moe")
            for seed in seeds(VARIED)
        ]
    return Study("argument", tuple(runs))


@dataclass(frozen=True)
class Argument:
    """Main tables, and the reader's own beside them where they are not the same."""

    main: Evidence
    own: Evidence | None = None

    @cached_property
    def board(self) -> Board:
        """Claims, and what the main tables say of them."""
        return board(self.main)

    @property
    def profile(self) -> str:
        """That trained the main tables."""
        return str(self.main.rows["profile"][0])

    def moments(self, task: str, arms: Iterable[str]) -> pl.DataFrame:
        """Rows of these arms in the main tables, a model and moment each; arms that are missing are left out."""
        return _rows(self.main, task, arms)

    def beside(self, task: str, arms: Iterable[str]) -> pl.DataFrame | None:
        """The reader's own rows of these arms; None where the main tables are the reader's, or he has none."""
        found = _rows(self.own, task, arms) if self.own else pl.DataFrame()
        return None if found.is_empty() else found

    def lane(self, lane: str, task: str, arms: Iterable[str]) -> pl.DataFrame | None:
        """Rows of these arms in the `main` tables, or in the reader's `own`; None where there are none of his."""
        return self.moments(task, arms) if lane == "main" else self.beside(task, arms)

    def measured(
        self, family: Family, task: str, arms: Iterable[str], moments: Iterable[str] = ()
    ) -> pl.DataFrame:
        """A family's rows of these arms' models, in both lanes, with `lane`, `arm`, `seed` and the task's settings.

        Args:
            family, task, arms: of the runs; those that were not measured have no rows.
            moments: checkpoints in the order of trial: of each model and lane the first that any model of the lane
                was measured at. The paper's unless given.
        """
        arms, trial = list(arms), list(moments) or [PAPER_MOMENT[task]]
        found = []
        for lane, evidence in (("main", self.main), ("own", self.own)):
            models = self.lane(lane, task, arms)
            if evidence is None or models is None or family not in evidence.families:
                continue
            settings = [name for name in SETTING if name in models.columns]
            names = models.select("spec_id", "arm", "seed", *settings).unique(maintain_order=True)
            rows = names.join(evidence.families[family], on="spec_id", maintain_order="left_right")
            at = next((moment for moment in trial if moment in set(rows["moment"])), None)
            found.append(rows.filter(moment=at).with_columns(lane=pl.lit(lane)))
        if found:
            return pl.concat(found, how="diagonal_relaxed")
        columns = dict.fromkeys(SETTING, pl.Int64) | {"arm": pl.String, "seed": pl.Int64, "lane": pl.String}
        return pl.DataFrame(schema=columns | schema(family))

    def missing(self, task: str, arms: Iterable[str]) -> list[str]:
        """Those of these arms that the main tables do not have."""
        arms = list(arms)
        there = set(self.moments(task, arms)["arm"]) if arms else set()
        return [name for name in arms if name not in there]

    def curves(self, task: str, arms: Iterable[str], *, own: bool = False) -> pl.DataFrame:
        """One row a model and look, with its `arm` and `seed`; of the main tables, or of the reader's own."""
        evidence = (self.own if own else self.main) or Evidence(
            self.main.rows.clear(), {}, self.main.curves.clear()
        )
        names = _rows(evidence, task, arms).select("spec_id", "arm", "seed").unique(maintain_order=True)
        return names.join(evidence.curves, on="spec_id", maintain_order="left_right")


def gather(profile: Profile) -> Argument:
    """The tables for a profile's chapters; trains what is missing of the reader's part."""
    paper = Store(results_folder("paper"))
    if profile == "paper":
        return Argument(Evidence.of(paper))
    results = [
        studies.run(each) for each in (redistribution.study(profile), study(profile), _experts(profile))
    ]
    specs = [spec for each in results for spec in each.study.specs]
    ids = list(dict.fromkeys(spec.spec_id for spec in specs))
    own = Evidence(
        pl.concat([each.moments for each in results], how="diagonal_relaxed"),
        {spec.spec_id: json.loads(spec.canonical) for spec in specs},
        pl.concat([each.curves for each in results], how="diagonal_relaxed").unique(("spec_id", "step")),
        Families(FAMILIES, lambda family: measured.rows(studies.store(profile), family, ids)),
    )
    return Argument(Evidence.of(paper), own) if paper.tables else Argument(own)


def _experts(profile: Profile) -> Study:
    """The runs of the sweep at the width of all others, where a name means one number of experts."""
    width = arm("dense", profile, "add7", 0).width
    runs = tuple((name, spec) for name, spec in sweep.study(profile).runs if spec.width == width)
    return Study("experts", runs)


def _rows(evidence: Evidence, task: str, arms: Iterable[str]) -> pl.DataFrame:
    """An arm is a name of `arms` or of `sweeps` (`moe_norm`): there a name means one setting of a task."""
    found = []
    for name in arms:
        try:
            found.append(evidence.models(task, name).with_columns(pl.lit(name).alias("arm")))
        except Absent:
            continue
    return pl.concat(found) if found else evidence.rows.clear()
