"""A certificate: every published number that our tables give again, with its interval, beside the published value.

What is promised. The same bits for the same lock (`constraints.txt`) and the same class of device: whoever trains
again with both gets the tables whose hashes stand here. The same statistics everywhere: from these tables, every
value and interval here comes out again to within `TOLERANCE` on any machine, without torch; `verify` does that.
Between classes of device the tables differ in their bits, and the values within what seeds differ.

A published number is looked for at the moment at which the paper looks, over every seed there is. Without a setting
it is the arm of the study `redistribution`, or of the one study that has it; with one (`norm=rms`), the runs that
differ from that arm's in this setting alone. A number that the tables do not give is listed with the reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_moves.errors import UserError
from sparsity_moves.store import Broken, Store
from sparsity_moves.store.files import read_json, write_json
from sparsity_moves.store.tables import CURVES, RUNS, TABLES
from sparsity_moves.studies import source_commit
from sparsity_moves.studies.published import PAPER_MOMENT, best, published
from sparsity_moves.studies.statistics import METHOD, interval

FILE = "certificate.json"
TOLERANCE = 1e-9
"""Largest relative difference between a certified value and the one that is computed again."""

MAIN = "redistribution"
UNIT = {"percent": 100.0, "points": 100.0}
Row = dict[str, Any]


class Absent(Exception):
    """Why a published number cannot be computed from the tables."""


def certify(store: Store, lock: Path) -> Row:
    """Write the certificate of a store's tables, and give it. Raises `Broken` where they are damaged or missing."""
    if not store.tables:
        store.tables.manifest()  # says how to get them
    if damage := store.tables.damage():
        raise Broken(next(iter(damage.values())))
    manifest = store.tables.manifest()
    certificate = {
        "profile": store.root.name,
        "commit": source_commit(),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "devices": sorted({shard["device"] for shard in manifest["shards"]}),
        "files": manifest["files"],
        "interval": METHOD,
        **numbers(store),
    }
    write_json(store.root / FILE, certificate)
    return certificate


def check(store: Store) -> list[str]:
    """Every way in which the certificate and the tables disagree, one sentence each."""
    path = store.root / FILE
    certificate = read_json(path)
    if certificate is None:
        return [
            f"{path} is missing or damaged; `sparsity-moves certify --profile {store.root.name}` writes it anew"
        ]
    files = store.tables.manifest()["files"]
    found = [
        f"{path} was written for another {name}; certify again"
        for name in TABLES
        if certificate["files"].get(name) != files[name]
    ]
    if found:
        return found
    again = numbers(store)
    if (certificate["runs"], certificate["diverged"]) != (again["runs"], again["diverged"]):
        found.append(f"{path} counts other runs than the tables hold")
    ours = {_name(row): row for row in again["numbers"]}
    theirs = {_name(row): row for row in certificate["numbers"]}
    found += [f"{path} lacks or adds a number: {name}" for name in sorted(ours.keys() ^ theirs.keys())]
    for name in ours.keys() & theirs.keys():
        for key, value in ours[name].items():
            if not _same(value, theirs[name].get(key)):
                found.append(
                    f"{path} gives {name} the {key} {theirs[name].get(key)}; the tables give {value}"
                )
    return found


def summary(store: Store) -> str:
    """What the certificate holds, in one sentence."""
    found = read_json(store.root / FILE) or {}
    done, left = found["numbers"], found["not_computed"]
    inside = sum(isinstance(r["low"], float) and r["low"] <= r["published"] <= r["high"] for r in done)
    diverged = f", {len(found['diverged'])} of them diverged" if found["diverged"] else ""
    return (
        f"{len(done)} of {len(done) + len(left)} published numbers over {found['runs']} runs{diverged}; "
        f"{inside} published values lie within our intervals"
    )


def numbers(store: Store) -> Row:
    """Every published number, computed again or not, and how many runs there are."""
    tables = _Runs(store)
    done, left = [], []
    for row in best(published()).sort("task", "arm", "setting", "measure", "detail").iter_rows(named=True):
        told = {key: row[key] for key in ("task", "arm", "setting", "measure", "detail", "unit", "source")}
        try:
            values, moment = tables.values(row)
        except Absent as why:
            left.append(told | {"why": str(why)})
            continue
        bounds = interval(values)
        done.append(
            told
            | {
                "moment": moment,
                "published": row["value"],
                "published_sd": row["sd"],
                "published_n": row["n"],
            }
            | {"value": _number(math.fsum(values) / len(values)), "n": len(values)}
            | {"low": _number(bounds[0]) if bounds else None, "high": _number(bounds[1]) if bounds else None}
        )
    curves = store.table(CURVES)
    last = curves.group_by("spec_id").agg(pl.col("loss").last())
    diverged = last.filter(~pl.col("loss").is_finite())["spec_id"].sort().to_list()
    return {"numbers": done, "not_computed": left, "runs": len(last), "diverged": diverged}


class _Runs:
    """The rows of runs.parquet, found as the paper speaks of them."""

    def __init__(self, store: Store) -> None:
        self.rows = store.table(RUNS)
        self.settings = {
            spec_id: {k: v for k, v in own.items() if k != "seed"}
            for spec_id, own in store.tables.settings().items()
        }

    def values(self, row: Row) -> tuple[list[float], str]:
        """One value a seed, in the published unit, and the moment."""
        measure, task, scale = row["measure"], row["task"], UNIT.get(row["unit"], 1.0)
        if row["detail"]:
            raise Absent("the tables hold whole models, not their parts")
        moment = row["moment"] or PAPER_MOMENT.get(task, "")
        if measure == "difference_from_learned":
            learned = self.at(row | {"arm": row["arm"].removesuffix("_frozen")}, moment)
            pairs = self.at(row, moment).join(learned, on="seed", suffix="_learned").sort("seed")
            difference = pairs["no_ffn_accuracy"] - pairs["no_ffn_accuracy_learned"]
            return _present((scale * difference).to_list()), moment
        if measure == "grokked_seeds":  # so many of the paper's five
            grokked = set(self.at(row, "grokked", required=False)["spec_id"])
            return [float(row["n"] * (i in grokked)) for i in self.at(row, "final")["spec_id"]], "grokked"
        if measure == "grokked_step":
            return _present(self.at(row, "grokked")["step"].cast(pl.Float64).to_list()), "grokked"
        if measure not in self.rows.columns:
            raise Absent("the tables have no such column")
        return _present((scale * self.at(row, moment)[measure]).to_list()), moment

    def at(self, row: Row, moment: str, *, required: bool = True) -> pl.DataFrame:
        """The models that a published number speaks of, at one moment, in the order of their seeds."""
        found = self.models(row["task"], row["arm"], row["setting"]).filter(moment=moment)
        if required and found.is_empty():
            raise Absent(f"no run has reached the moment {moment}")
        return found.sort("seed")

    def models(self, task: str, arm: str, setting: str) -> pl.DataFrame:
        rows = self.rows.filter(task=task, arm=arm)
        if MAIN in set(rows["study"]):
            rows = rows.filter(study=MAIN)
        shapes = {str(sorted(self.settings[i].items())): self.settings[i] for i in rows["spec_id"].unique()}
        if len(shapes) != 1:
            raise Absent("no run is stored" if not shapes else "studies give this arm several settings")
        (shape,) = shapes.values()
        if setting:
            field, _, value = setting.partition("=")
            if field not in self.rows.columns:
                raise Absent(f"runs have no setting {field}")
            rows = self.rows.filter(pl.col(field).cast(pl.String).str.strip_suffix(".0") == value)
            rows = rows.filter(self._where(lambda own: _without(own, field) == _without(shape, field)))
            if rows.is_empty():
                raise Absent("no run is stored")
        else:
            rows = self.rows.filter(self._where(lambda own: own == shape))
        return rows.unique(("spec_id", "moment"), keep="first", maintain_order=True)

    def _where(self, fits: Callable[[Row], bool]) -> pl.Expr:
        return pl.col("spec_id").is_in([i for i, own in self.settings.items() if fits(own)])


def _without(settings: Row, field: str) -> Row:
    return {key: value for key, value in settings.items() if key != field}


def _present(values: list[float | None]) -> list[float]:
    there = [value for value in values if value is not None]
    if not there:
        raise Absent("the tables have no value for it")
    return there


def _number(value: float) -> float | str:
    """JSON has no NaN, and a diverged model's is not to be hidden."""
    return value if math.isfinite(value) else str(value)


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)
    return a == b


def _name(row: Row) -> str:
    return " ".join(row[key] for key in ("task", "arm", "setting", "measure", "detail") if row[key])


def lock_file() -> Path:
    """`constraints.txt` of the checkout. Raises `UserError` elsewhere."""
    for folder in (Path.cwd(), *Path(__file__).resolve().parents):
        if (folder / "_toc.yml").exists():
            return folder / "constraints.txt"
    raise UserError("there is no lock here: run this in the project's checkout, where constraints.txt is")
