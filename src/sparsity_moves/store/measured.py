"""The measures of a store's runs: what is there of each family, and adding what is missing.

A family's rows of a run are read from its directory where that has them, else from the verified tables. So what was
measured of a run later, from its parameters, is found wherever it was put, and a run without has no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from sparsity_moves.names import FAMILIES, Family
from sparsity_moves.store.families import file_name, nothing, table, together
from sparsity_moves.store.files import sha256
from sparsity_moves.store.run_files import CHECKPOINT, kept, parquet, recorded
from sparsity_moves.store.tables import CURVES, RUNS, Broken

if TYPE_CHECKING:
    from sparsity_moves.store.store import Store

CIRCUMSTANCES = ("devices", "training_seconds", "peak_bytes", "source_commit")
"""What the manifest says of the runs, which measuring does not change."""
Measured = Mapping[str, Mapping[Family, Mapping[str, Sequence[Any]]]]
"""Columns of each family, by run."""


def rows(
    store: Store, family: Family, spec_ids: Iterable[str], records: Mapping[str, dict[str, Any]] | None = None
) -> pl.DataFrame:
    """A family's rows of these runs, in their order; those that were not measured have none. Raises `Broken`.

    `records` are those of the runs that have directories; they are read unless given.
    """
    ids = list(dict.fromkeys(spec_ids))
    name = file_name(family)
    records = _records(store, ids) if records is None else records
    own = [i for i in ids if i in records and name in records[i]["files"]]
    frames = []
    for spec_id in own:
        path = store.runs / spec_id / name
        if not path.exists() or sha256(path) != records[spec_id]["files"][name]:
            raise Broken(f"{path} is missing or damaged: it does not match its checksum")
        frames.append(pl.read_parquet(path))
    rest = sorted(set(ids) - set(own))
    frames.append(store.tables.family(family).filter(pl.col("spec_id").is_in(rest)))
    order = pl.DataFrame({"spec_id": ids}, schema={"spec_id": pl.String})
    return order.join(together(family, frames), on="spec_id", how="inner", maintain_order="left_right")


def every(store: Store, spec_ids: Iterable[str]) -> dict[Family, pl.DataFrame]:
    """All families' rows of these runs."""
    ids = list(spec_ids)
    records = _records(store, ids)
    return {family: rows(store, family, ids, records) for family in FAMILIES}


def _records(store: Store, spec_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    directories = set(store.directories())
    return {i: store.record(i, deep=False) for i in spec_ids if i in directories}


def there(store: Store, spec_ids: Iterable[str]) -> dict[str, dict[Family, set[str]]]:
    """Which families of these runs are there, at which moments; runs without any are left out. Raises `Broken`."""
    found: dict[str, dict[Family, set[str]]] = {}
    asked = set(spec_ids)
    for family in FAMILIES:
        rows = store.tables.family(family).select("spec_id", "moment").unique()
        for spec_id, moment in rows.filter(pl.col("spec_id").is_in(list(asked))).iter_rows():
            found.setdefault(spec_id, {}).setdefault(family, set()).add(moment)
    for spec_id in asked & set(store.directories()):
        record, directory = store.record(spec_id, deep=False), store.runs / spec_id
        every = set(record["moments"])
        # measured while it was trained a run has every moment's rows, and so it has from all its parameters
        partly = CHECKPOINT in record["files"] and set(kept(directory / CHECKPOINT)) < every
        for family in FAMILIES:
            if (name := file_name(family)) in record["files"]:
                own = (
                    set(pl.read_parquet(directory / name, columns=["moment"])["moment"]) if partly else every
                )
                found.setdefault(spec_id, {})[family] = own
    return found


def moments(store: Store, spec_ids: Iterable[str]) -> dict[str, set[str]]:
    """The moments of these runs. Raises `Broken`."""
    asked, directories = set(spec_ids), set(store.directories())
    found = {i: set(store.record(i, deep=False)["moments"]) for i in asked & directories}
    if rest := asked - directories:
        rows = store.table(RUNS).filter(pl.col("spec_id").is_in(list(rest)))
        for spec_id, moment in rows.select("spec_id", "moment").unique().iter_rows():
            found.setdefault(spec_id, set()).add(moment)
    return found


def add(store: Store, measured: Measured) -> None:
    """Add families, or moments of them, to stored runs: to a run's directory if it has one, else to the tables.

    What is there stays as it is.

    Raises `Broken` for a run that is damaged, and `UserError` where the disk refuses.
    """
    with store.writing():
        directories = set(store.directories())
        for spec_id in measured.keys() & directories:
            record = store.record(spec_id)
            files = {name: (store.runs / spec_id / name).read_bytes() for name in record["files"]}
            for family, rows in measured[spec_id].items():
                new, name = table(family, spec_id, rows), file_name(family)
                old = pl.read_parquet(store.runs / spec_id / name) if name in files else nothing(family)
                files[name] = parquet(_and_more(family, old, new))
            store.put(spec_id, recorded(record, files))
        tabled = {spec_id: of for spec_id, of in measured.items() if spec_id not in directories}
        if tabled:
            _add_to_tables(store, tabled)


def _and_more(family: Family, old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """A table with the rows of runs and moments that it does not have yet."""
    return together(family, [old, new.join(old, on=["spec_id", "moment"], how="anti", maintain_order="left")])


def _add_to_tables(store: Store, measured: Measured) -> None:
    frames = {}
    for family in FAMILIES:
        old = store.tables.family(family)
        new = [table(family, spec_id, of[family]) for spec_id, of in sorted(measured.items()) if family in of]
        frames[family] = _and_more(family, old, together(family, new))
    kept = {k: v for k, v in store.tables.manifest().items() if k in CIRCUMSTANCES}
    store.tables.write(store.table(RUNS), store.table(CURVES), store.tables.shards(), measures=frames, **kept)
