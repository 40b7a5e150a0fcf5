"""A certificate: every published number that our tables give again, with its interval, beside the published value.

What is promised. The same bits for the same lock (`constraints.txt`) and the same class of device: whoever trains
again with both gets the tables whose hashes stand here. The same statistics everywhere: from these tables, every
value and interval here comes out again to within `TOLERANCE` on any machine, without torch; `verify` does that.
Between classes of device the tables differ in their bits, and the values within what seeds differ.

A published number is looked for at the moment at which the paper looks, over every seed there is (see `evidence`).
A number that the tables do not give is listed with the reason.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import polars as pl
import polars.selectors as cs

from sparsity_moves.errors import UserError
from sparsity_moves.store import Broken, Store
from sparsity_moves.store.files import read_json, write_json
from sparsity_moves.store.tables import TABLES
from sparsity_moves.studies import source_commit
from sparsity_moves.studies.evidence import Absent, Evidence, Row
from sparsity_moves.studies.published import best, published
from sparsity_moves.studies.statistics import METHOD, interval

FILE = "certificate.json"
TOLERANCE = 1e-9
"""Largest relative difference between a certified value and the one that is computed again."""


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
    """Every way in which the certificate and the tables disagree, one sentence each.

    The lock's hash is a record of what the runs were certified with: another lock is no disagreement.
    """
    path = store.root / FILE
    certificate = read_json(path)
    if certificate is None:
        return [
            f"{path} is missing or damaged; `sparsity-moves certify --profile {store.root.name}` writes it anew"
        ]
    files = store.tables.manifest()["files"]
    certified = certificate["files"]
    other = [name for name in files.keys() | certified.keys() if certified.get(name) != files.get(name)]
    if other := sorted(other, key=lambda name: (name not in TABLES, name)):
        more = f" and {len(other) - 1} more files" if other[1:] else ""
        return [f"{path} was written for another {other[0]}{more}; certify again"]
    found = []
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
    tables = Evidence.of(store)
    done, left = [], []
    for row in best(published()).sort("task", "arm", "setting", "measure", "detail").iter_rows(named=True):
        told = {key: row[key] for key in ("task", "arm", "setting", "measure", "detail", "unit", "source")}
        try:
            values, moment = tables.values(row)["value"].to_list(), tables.moment(row)
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
    last = tables.curves.group_by("spec_id").agg(pl.col("loss").last())
    lost = last.filter(~pl.col("loss").is_finite())["spec_id"]
    # A model may be spoiled where no input of its training set leads.
    spoiled = tables.rows.filter(pl.any_horizontal(cs.float().is_nan()))["spec_id"]
    diverged = sorted({*lost, *spoiled})
    return {"numbers": done, "not_computed": left, "runs": len(last), "diverged": diverged}


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
