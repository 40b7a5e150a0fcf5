"""What is claimed, by the paper, by its critics and by this book, and how each claim is judged: `claims.toml`, read.

The file says which sentence, whose it is, which tests must hold and which published numbers belong to it. It holds no
verdict: `verdicts` computes those from the tables.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sparsity_moves.errors import UserError
from sparsity_moves.studies.published import published

Row = dict[str, Any]
Source = Literal["paper", "review", "ours"]
SOURCES: dict[str, str] = {"paper": "The paper's.", "review": "Asked of the paper.", "ours": "Ours."}
CHANCE = "chance:"
PERCENT = ("accuracy", "exact_match", "difference_from_learned")


@dataclass(frozen=True)
class Side:
    """One side of a test: an arm at a setting and a moment, or what a strategy scores that computes nothing."""

    arm: str = ""
    setting: str = ""
    moment: str = ""
    chance: str = ""
    detail: str = ""
    """The part of the model or of its answer, where the two sides differ in it."""
    over: Side | None = None
    """What is subtracted, seed by seed: a side may be a difference itself."""

    @staticmethod
    def read(text: str) -> Side:
        """A side as the file writes it: `arm setting @moment / detail`, `a over b`, or `chance:strategy`."""
        one, _, other = text.partition(" over ")
        if other:
            return replace(Side.read(one), over=Side.read(other))
        if text.startswith(CHANCE):
            return Side(chance=text.removeprefix(CHANCE))
        text, _, detail = text.partition(" / ")
        arm, *more = text.split()
        moment = "".join(word[1:] for word in more if word.startswith("@"))
        setting = " ".join(word for word in more if not word.startswith("@"))
        return Side(arm, setting, moment, detail=detail)


@dataclass(frozen=True)
class Part:
    """One test: `more`, the first side's mean is above the second's by `margin`; `same`, they differ by less."""

    kind: Literal["more", "same"]
    task: str
    measure: str
    sides: tuple[Side, Side]
    margin: float = 0.0
    """In the unit of the measure. A difference may be certain and still too small to matter."""
    detail: str = ""

    @property
    def unit(self) -> str:
        """`percent` for accuracies, then differences are points; else the measure's own."""
        return (
            "percent" if self.measure.endswith(PERCENT) else "steps" if "step" in self.measure else "fraction"
        )

    def row(self, side: Side) -> Row:
        """A side as `evidence` looks for it."""
        detail = side.detail or self.detail
        place = {"task": self.task, "arm": side.arm, "setting": side.setting, "detail": detail}
        return place | {"measure": self.measure, "moment": side.moment, "unit": self.unit, "n": 1}


@dataclass(frozen=True)
class Claim:
    """A sentence that the tables can bear out or not."""

    id: str
    sentence: str
    source: Source
    page: str
    parts: tuple[Part, ...] = ()
    numbers: tuple[Row, ...] = ()
    """Patterns of the published numbers that belong to it."""
    figure: str = ""
    apart: str = ""
    absent: str = ""

    def owns(self, row: Row) -> bool:
        """Whether a published number belongs to this claim."""
        return any(all(_fits(row[key], wanted) for key, wanted in each.items()) for each in self.numbers)


def _fits(value: str, wanted: str | list[str]) -> bool:
    return any(fnmatchcase(value, each) for each in ([wanted] if isinstance(wanted, str) else wanted))


@cache
def claims() -> tuple[Claim, ...]:
    """All claims, in the order of the scoreboard."""
    return tuple(_claim(entry) for entry in _file()["claim"])


def margin(row: Row) -> float:
    """How far ours may lie from a published number: its own standard deviation, or what the file says."""
    if row["sd"] is not None:
        return float(row["sd"])
    for entry in _file()["margin"]:
        if row["measure"] in entry["measures"] and entry.get("task", row["task"]) == row["task"]:
            return float(entry["value"] if "value" in entry else entry["relative"] * row["value"])
    raise UserError(f"claims.toml gives no margin for {row['task']} {row['measure']}")


def numbers() -> list[tuple[Claim, Row]]:
    """Every published number with the claim that it belongs to; one that two sources give is there twice.

    Raises `UserError` where one belongs to none, or to two: nothing may be missing in silence.
    """
    found = []
    for row in published().iter_rows(named=True):
        owners = [claim for claim in claims() if claim.owns(row)]
        if len(owners) != 1:
            name = " ".join(row[key] for key in ("task", "arm", "setting", "measure", "detail") if row[key])
            raise UserError(f"{len(owners)} claims own the published number {name}; one must")
        found.append((owners[0], row))
    return found


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _claim(entry: Row) -> Claim:
    parts = tuple(_part(part) for part in entry.pop("part", ()))
    return Claim(**{**entry, "parts": parts, "numbers": tuple(entry.get("numbers", ()))})


def _part(entry: Row) -> Part:
    entry = dict(entry)
    kind: Literal["more", "same"] = "same" if "same" in entry else "more"
    one, other = map(Side.read, entry.pop(kind))
    part = Part(kind, sides=(one, other), **entry)
    if kind == "same" and not part.margin > 0:
        raise UserError(f"claims.toml: a test of likeness needs a margin ({entry})")
    return part
