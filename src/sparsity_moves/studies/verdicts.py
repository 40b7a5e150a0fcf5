"""From claims and tables to verdicts, over all seeds or any subset of them.

A part of a claim is a test over paired seeds; its p is corrected for the number of parts (Benjamini & Hochberg), and

    more    holds where the t-test finds a difference, larger than the margin (none, unless the claim says one); fails
            where it finds one on the other side
    same    holds where TOST finds the mean within the margin; fails where the 95 % interval lies outside the margin

and is open otherwise. A claim is

    reproduced          where every part holds
    stronger            where the effect also lies above the published one by more than the margin
    partly              where some parts hold, or all do and the effect lies below the published one by more than that
    not reproduced      where one part fails and none holds
    undecided           where all are open
    not yet measured    where the tables have none of its runs

A published number is *reproduced* where our 95 % interval lies within the margin around it, *partly* where it
reaches into it, else *not reproduced*.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from sparsity_moves.studies.claims import Claim, Part, Row, Side, claims, margin, numbers
from sparsity_moves.studies.evidence import Absent, Evidence
from sparsity_moves.studies.published import best, published
from sparsity_moves.studies.statistics import LEVEL, adjusted, alike, different, t_interval

REPRODUCED, STRONGER, PARTLY, FAILED, UNDECIDED, UNMEASURED = VERDICTS = (
    "reproduced",
    "stronger",
    "partly",
    "not reproduced",
    "undecided",
    "not yet measured",
)
OWN_WORDS = {REPRODUCED: "holds", FAILED: "does not hold"}
"""What the verdicts are called on a claim that was not published."""
HOLDS, OPEN, FAILS, UNTESTED = "holds", "open", "fails", "not yet measured"
FEWEST = 2
"""Pairs that a test needs."""
DRAWS, FIVE = 1000, 5
Values = dict[int, float]
"""One value a seed."""


@dataclass(frozen=True)
class Tested:
    """A part of a claim, with its differences seed by seed."""

    __test__ = False  # pytest would take it for a test
    part: Part
    differences: Values
    why: str = ""
    """Why there are none."""
    published: float | None = None
    """The difference of the published values, in the unit of ours."""
    margin: float | None = None
    """How far from the published difference ours is still called as large."""


@dataclass(frozen=True)
class Number:
    """A published number with ours, seed by seed."""

    claim: Claim
    row: Row
    values: Values
    moment: str = ""
    why: str = ""
    margin: float | None = None

    def verdict(self, seeds: Collection[int] | None = None) -> str:
        """Of the number over these seeds (all of ours, unless given)."""
        values = list(chosen(self.values, seeds).values())
        if not values:
            return UNMEASURED
        if self.row["measure"] == "p_value":  # no mean: found, or not, at the usual level, as the paper found
            ours = different(np.array(values)) < LEVEL if len(values) >= FEWEST else None
            return (
                UNDECIDED if ours is None else REPRODUCED if ours == (self.row["value"] < LEVEL) else FAILED
            )
        if (bounds := t_interval(values)) is None:
            return UNDECIDED
        assert self.margin is not None
        low, high = self.row["value"] - self.margin, self.row["value"] + self.margin
        if low <= bounds[0] and bounds[1] <= high:
            return REPRODUCED
        return PARTLY if bounds[1] >= low and bounds[0] <= high else FAILED


@dataclass(frozen=True)
class Board:
    """Every claim and every published number, with what the tables hold of them."""

    tested: dict[str, list[Tested]]
    """By the claim's id."""
    numbers: list[Number]
    claims: tuple[Claim, ...] = field(default_factory=claims)

    @cached_property
    def _flat(self) -> list[Tested]:
        return [tested for claim in self.claims for tested in self.tested[claim.id]]

    @cached_property
    def corrected_for(self) -> int:
        """Tests that the correction counts: those that all seeds can make."""
        return sum(self._testable)

    def verdicts(self, seeds: Collection[int] | None = None) -> dict[str, str]:
        """The verdict on every claim over these seeds (all, unless given), by its id."""
        rows = [np.array([*chosen(tested.differences, seeds).values()]) for tested in self._flat]
        return self._judged([row[None] for row in rows], 1)[0]

    def of_five(self, *, draws: int = DRAWS) -> dict[str, int | None]:
        """In how many draws of five of its seeds each claim holds, or turns out stronger; None where it has fewer."""
        source = np.random.default_rng(0)
        rows = []
        for claim in self.claims:
            seeds = self._shared(claim)
            order = source.random((draws, len(seeds))).argsort(axis=1)[:, :FIVE]
            for tested in self.tested[claim.id]:
                values = np.array([tested.differences[seed] for seed in seeds if tested.differences])
                rows.append(values[order] if len(values) else np.empty((draws, 0)))
        found = self._judged(rows, draws)
        good = (REPRODUCED, STRONGER)
        return {
            claim.id: sum(each[claim.id] in good for each in found) if self.pairs(claim) >= FIVE else None
            for claim in self.claims
        }

    def pairs(self, claim: Claim) -> int:
        """Pairs of seeds that every measured part of a claim has; 0 where none is measured."""
        return len(self._shared(claim))

    def _shared(self, claim: Claim) -> list[int]:
        """The seeds of all of a claim's measured parts."""
        each = [set(tested.differences) for tested in self.tested[claim.id] if tested.differences]
        return sorted(set.intersection(*each)) if each else []

    def p(self) -> list[float | None]:
        """The corrected p of every part over all seeds, in order; None where there is no test."""
        rows = [np.array([*tested.differences.values()])[None] for tested in self._flat]
        p = self._corrected(rows, 1)[0]
        return [float(p[i]) if there else None for i, there in enumerate(self._testable)]

    @cached_property
    def _testable(self) -> list[bool]:
        return [len(tested.differences) >= FEWEST for tested in self._flat]

    def _corrected(self, rows: list[np.ndarray], draws: int) -> np.ndarray:
        """p of every part in every draw, corrected for the tests that there are."""
        p = self._p(rows, draws)
        p[:, self._testable] = adjusted(p[:, self._testable])
        return p

    def _p(self, rows: list[np.ndarray], draws: int) -> np.ndarray:
        """p of every part in every draw, (draws, parts). What cannot be tested counts as nothing found: 1."""
        p = np.ones((draws, len(rows)))
        for i, (tested, values) in enumerate(zip(self._flat, rows, strict=True)):
            if values.shape[1] >= FEWEST:
                margin = tested.part.margin
                same = tested.part.kind == "same"
                p[:, i] = alike(values, margin) if same else different(values - margin)
        return p

    def _judged(self, rows: list[np.ndarray], draws: int) -> list[dict[str, str]]:
        p = self._corrected(rows, draws)
        outcome = [
            _outcomes(tested, values, p[:, i])
            for i, (tested, values) in enumerate(zip(self._flat, rows, strict=True))
        ]
        size = [_size(tested, values) for tested, values in zip(self._flat, rows, strict=True)]
        found = []
        for draw in range(draws):
            place, verdicts = 0, {}
            for claim in self.claims:
                mine = slice(place, place + len(self.tested[claim.id]))
                place = mine.stop
                verdicts[claim.id] = _verdict(
                    [each[draw] for each in outcome[mine]], [each[draw] for each in size[mine]]
                )
            found.append(verdicts)
        return found


def _outcomes(tested: Tested, values: np.ndarray, p: np.ndarray) -> list[str]:
    if values.shape[1] < FEWEST:
        return [UNTESTED if not tested.differences else OPEN] * len(p)
    mean, margin = values.mean(axis=1), tested.part.margin
    if tested.part.kind == "more":
        holds, fails = (p < LEVEL) & (mean > margin), (p < LEVEL) & (mean < margin)
    else:
        beyond = different(values - (np.sign(mean) * margin)[:, None]) < LEVEL
        holds, fails = p < LEVEL, (np.abs(mean) > margin) & beyond
    return [HOLDS if yes else FAILS if no else OPEN for yes, no in zip(holds, fails, strict=True)]


def _size(tested: Tested, values: np.ndarray) -> list[int]:
    """1 where the whole interval lies above the published effect by more than the margin, -1 where it lies below."""
    if tested.published is None or tested.margin is None or values.shape[1] < FEWEST:
        return [0] * len(values)
    low, high = tested.published - tested.margin, tested.published + tested.margin
    bounds = t_interval(values)
    assert bounds is not None
    return [
        1 if above else -1 if below else 0
        for above, below in zip(bounds[0] > high, bounds[1] < low, strict=True)
    ]


def _verdict(outcomes: list[str], size: list[int]) -> str:
    known = [each for each in outcomes if each != UNTESTED]
    if not known:
        return UNMEASURED
    if all(each == HOLDS for each in outcomes):
        return PARTLY if -1 in size else STRONGER if 1 in size else REPRODUCED
    if HOLDS in known:
        return PARTLY
    return FAILED if FAILS in known else UNDECIDED


def chosen(values: Values, seeds: Collection[int] | None) -> Values:
    """Those of these seeds; all where none are named."""
    return values if seeds is None else {seed: value for seed, value in values.items() if seed in seeds}


def board(evidence: Evidence) -> Board:
    """Every claim and every published number, looked up in the tables."""
    tested = {claim.id: [_tested(part, evidence) for part in claim.parts] for claim in claims()}
    return Board(tested, [_number(claim, row, evidence) for claim, row in numbers()])


def words(claim: Claim, verdict: str) -> str:
    """A verdict as it is said of this claim: only what was published can be reproduced."""
    return verdict if claim.source == "paper" else OWN_WORDS.get(verdict, verdict)


def _tested(part: Part, evidence: Evidence) -> Tested:
    try:
        one, other = (_side(part, side, evidence) for side in part.sides)
    except Absent as why:
        return Tested(part, {}, str(why))
    if isinstance(one, float):
        raise TypeError("a strategy that computes nothing stands on the second side of a test")
    if isinstance(other, float):
        return Tested(part, {seed: value - other for seed, value in one.items()})
    differences = {seed: value - other[seed] for seed, value in one.items() if seed in other}
    theirs = [_published(part, side) for side in part.sides]
    if part.kind == "same" or theirs[0] is None or theirs[1] is None:
        return Tested(part, differences)
    wide = max(margin(row) for row in theirs if row)
    return Tested(part, differences, published=theirs[0]["value"] - theirs[1]["value"], margin=wide)


def _side(part: Part, side: Side, evidence: Evidence) -> Values | float:
    """One value a seed. A model that never grokked has its last step for the one at which it did: leaving it out
    would leave out what speaks for a side that is to be late, or against one that is to be soon."""
    if side.chance:
        return 100 * _chance(part.task, side.chance, evidence)
    row = part.row(side)
    if part.measure == "grokked_step":
        values = _steps(evidence.at(row, "final")) | _steps(evidence.at(row, "grokked", required=False))
    else:
        values = dict(evidence.values(row).iter_rows())
    if side.over is None:
        return values
    less = dict(evidence.values(part.row(side.over)).iter_rows())
    return {seed: value - less[seed] for seed, value in values.items() if seed in less}


def _steps(rows: pl.DataFrame) -> Values:
    return dict(zip(rows["seed"], map(float, rows["step"]), strict=True))


def _chance(task: str, strategy: str, evidence: Evidence) -> float:
    from sparsity_moves.studies.arms import arm  # which needs torch

    rows = evidence.rows.filter(task=task)
    if rows.is_empty():
        raise Absent("no run is stored")
    return arm("dense", rows["profile"][0], task, 0).task_object.chance()[strategy]  # type: ignore[arg-type]


def _published(part: Part, side: Side) -> Row | None:
    """What was published of a side, at the moment that the part looks at."""
    rows = best(published()).filter(
        task=part.task,
        arm=side.arm,
        measure=part.measure,
        setting=side.setting,
        detail=side.detail or part.detail,
    )
    if rows.is_empty() or side.over is not None or (side.moment and side.moment != rows["moment"][0]):
        return None
    return rows.row(0, named=True)


def _number(claim: Claim, row: Row, evidence: Evidence) -> Number:
    if claim.absent:
        return Number(claim, row, {}, why=claim.absent)
    wide = None if row["measure"] == "p_value" else margin(row)
    looked = (
        row | {"measure": "difference_from_learned", "unit": "points"} if row["measure"] == "p_value" else row
    )
    try:
        values = dict(evidence.values(looked).iter_rows())
    except Absent as why:
        return Number(claim, row, {}, why=str(why), margin=wide)
    return Number(claim, row, values, evidence.moment(looked), margin=wide)
