"""Runs computed on another machine or day: packed into a few files there, and merged here.

A pack is a store that has tables and no directories, so it is written, read and checked as any other: its folder
holds runs.parquet, curves.parquet, the families' tables, manifest.json, and the checkpoints that were asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sparsity_moves.errors import UserError
from sparsity_moves.names import FAMILIES, Family
from sparsity_moves.store import measured
from sparsity_moves.store.families import together
from sparsity_moves.store.shards import joined
from sparsity_moves.store.store import Store
from sparsity_moves.store.tables import CURVES, RUNS, Broken


@dataclass(frozen=True)
class Taken:
    """What a merge did, in runs."""

    new: tuple[str, ...]
    there_already: tuple[str, ...]


def export(
    store: Store, spec_ids: Iterable[str], folder: Path | str, checkpoints: Collection[str] = ()
) -> Taken:
    """Add runs to the pack in a folder; `checkpoints` are the runs whose parameters go with them.

    Raises `Broken` where a run is missing or damaged, and `UserError` where the disk refuses.
    """
    return _take(Store(folder), store, sorted(set(spec_ids)), checkpoints)


def merge(store: Store, folder: Path | str) -> Taken:
    """Bring the runs of a pack, or of a whole other store, into a store's tables, with their checkpoints.

    Nothing is taken before every checksum and every address in it has been found right. Runs that are here
    already are left as they are, but for families of measures that they lack, wholly or at a moment. Raises
    `Broken` where the pack is damaged, and `UserError` where there is none or where it gives a run that is here
    other numbers.
    """
    pack = Store(folder)
    if not pack.tables and not pack.directories():
        raise UserError(f"there are no stored runs in {folder}: a pack has a manifest.json")
    if damage := pack.damage():
        raise Broken(f"{damage[0]}; nothing was taken from {folder}")
    return _take(store, pack, pack.spec_ids(), pack.spec_ids())


def _take(store: Store, source: Store, spec_ids: list[str], checkpoints: Collection[str]) -> Taken:
    with store.writing():
        if damage := store.tables.damage():
            raise Broken(f"{next(iter(damage.values()))}; nothing was taken from {source.root}")
        here = set(store.spec_ids())
        both, new = [i for i in spec_ids if i in here], [i for i in spec_ids if i not in here]
        _agree(store, source, both)
        parameters = {
            i: path.read_bytes()
            for i in spec_ids
            if i in checkpoints and not store.kept(i) and (path := source.checkpoint_file(i))
        }
        measures, added = _measures(store, source, new, both)
        if not new and not parameters and not added:
            return Taken((), tuple(both))
        runs, curves = source.moments(new), source.curves(new)
        shards = source.shards(new)
        if store.tables:
            runs = pl.concat([store.table(RUNS), runs], how="diagonal_relaxed")
            curves = pl.concat([store.table(CURVES), curves], how="diagonal_relaxed")
            shards = joined(store.tables.shards() + shards)
        elif both:  # runs that no table holds yet
            runs = pl.concat([store.moments(both), runs], how="diagonal_relaxed")
            curves = pl.concat([store.curves(both), curves], how="diagonal_relaxed")
            shards = joined(store.shards(set(both)) + shards)
        unnamed = [pl.lit(None, pl.String).alias(c) for c in ("study", "arm") if c not in runs.columns]
        store.tables.write(runs.with_columns(unnamed), curves, shards, parameters, measures)
    return Taken(tuple(new), tuple(both))


def _measures(
    store: Store, source: Store, new: list[str], both: list[str]
) -> tuple[dict[Family, pl.DataFrame], bool]:
    """The families' tables with the new runs, and others that lack a family; whether that adds anything.

    Raises `UserError` where two stores give a run different measures.
    """
    frames, added = {}, False
    for family in FAMILIES:
        ours, theirs = measured.rows(store, family, both), measured.rows(source, family, new + both)
        # measured again at more moments, by another machine perhaps, they take the place of those of a few
        more = _moments(theirs).join(_moments(ours), on="spec_id").filter(pl.col("len") > pl.col("len_right"))
        replaced = pl.col("spec_id").is_in(more["spec_id"].to_list())
        ours = ours.filter(~replaced)
        common = set(ours["spec_id"]) & set(theirs["spec_id"])
        shared = pl.col("spec_id").is_in(sorted(common))
        _same(f"table of {family}", ours.filter(shared), theirs.filter(shared), store, source)
        fresh = theirs.filter(~shared)
        added = added or len(fresh) > 0
        frames[family] = together(family, [store.tables.family(family).filter(~replaced), fresh])
    return frames, added


def _moments(rows: pl.DataFrame) -> pl.DataFrame:
    """At how many moments each run was measured."""
    return rows.group_by("spec_id").agg(pl.col("moment").n_unique().alias("len"))


def _agree(store: Store, source: Store, spec_ids: list[str]) -> None:
    """Raise `UserError` where two stores give a run different numbers."""
    if not spec_ids:
        return
    pairs = (
        ("measures", store.moments(spec_ids), source.moments(spec_ids)),
        ("curve", store.curves(spec_ids), source.curves(spec_ids)),
    )
    for what, ours, theirs in pairs:
        _same(what, ours, theirs, store, source)


def _same(what: str, ours: pl.DataFrame, theirs: pl.DataFrame, store: Store, source: Store) -> None:
    """Raise `UserError` where two tables of the same runs differ."""
    common = [name for name in ours.columns if name in theirs.columns]  # a newer version may measure more
    rows = pl.concat([ours.select(common), theirs.select(common)], how="vertical_relaxed")
    alone = rows.group_by(common).len().filter(pl.col("len") != 2)
    if not alone.is_empty():
        raise UserError(
            f"run {alone['spec_id'].sort()[0]} has another {what} in {source.root} than in {store.root} "
            f"({alone['spec_id'].n_unique()} runs differ); nothing was taken"
        )
