"""Runs on disk, addressed by their spec.

    results/<profile>/
        runs/<spec_id>/     moments.parquet · curve.parquet · <family>.parquet · checkpoint.safetensors · record.json
        runs.parquet · curves.parquet · <family>.parquet · checkpoints/ · manifest.json     the tables: see `tables`
        .unfinished/        states of trainings that were interrupted: see `unfinished`

A run's directory appears in one rename, complete, or not at all; `record.json` holds the other files' checksums
and its own. A run may be stored without a checkpoint, with only some moments' parameters, or without the measures of
a family, which can be added later: see `measured`.

One rule says where a run is read: from its directory if there is one, else from the verified tables. So tables
alone are a store (`results/paper` is one, and so is a pack from another machine), and writing tables never drops
a run that only the old ones hold. Tables hold nothing that a second training on the same machine would not give
again, bit by bit: wall times and versions are in the records and the manifest.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sparsity_moves.errors import UserError
from sparsity_moves.store import measured
from sparsity_moves.store import shards as accounts
from sparsity_moves.store.families import FILES
from sparsity_moves.store.files import WRITERS, explained, locked, read_json, sha256, sync
from sparsity_moves.store.run_files import CHECKPOINT, CURVE, MOMENTS, RECORD, RunFiles, address, encode, kept
from sparsity_moves.store.shards import Shard
from sparsity_moves.store.tables import CURVES, RUNS, Broken, Tables, checkpoint_name
from sparsity_moves.store.unfinished import FOLDER, runs_of

if TYPE_CHECKING:  # what is stored can be read and checked where there is no torch
    from sparsity_moves.model import Parameters
    from sparsity_moves.training import Run, Spec


def held(directory: Path) -> set[str]:
    """What a run can be stored without, and is here: parameters of a moment, measures of a family at a moment."""
    found = set(kept(directory / CHECKPOINT))
    for name in FILES:
        if (directory / name).exists():
            moments = pl.read_parquet(directory / name, columns=["moment"])["moment"].unique()
            found |= {f"{name} {moment}" for moment in moments}
    return found


class Store:
    """The runs of one directory. Safe to write from several processes at once."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.runs = self.root / "runs"
        self.tables = Tables(self.root)
        self._locked = False

    # --- What is there

    def directories(self) -> list[str]:
        """The address of every run that has a directory, in order."""
        return sorted(p.name for p in self.runs.glob("*") if p.is_dir() and not p.name.startswith("."))

    def spec_ids(self) -> list[str]:
        """The address of every stored run, in order."""
        return sorted({*self.directories(), *self.tabled()})

    def has(self, spec: Spec, moment: str | None = None) -> bool:
        """Whether a run is stored; where a moment is named, whether its parameters then are too."""
        if moment is not None:
            return moment in self.kept(spec.spec_id)
        return (self.runs / spec.spec_id / RECORD).exists() or spec.spec_id in self.tabled()

    def kept(self, spec_id: str) -> list[str]:
        """The moments at which a run's parameters are stored."""
        own = self.runs / spec_id / CHECKPOINT
        return kept(own) or kept(self.root / checkpoint_name(spec_id))

    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings of every whole run, protocol included, by its spec_id."""
        return accounts.settings(self.shards(self.spec_ids()))

    def tabled(self) -> dict[str, dict[str, Any]]:
        """The settings of the runs that stand in whole tables; of damaged ones `damage` speaks."""
        try:
            return self.tables.settings()
        except Broken:
            return {}

    # --- Writing

    def save(
        self,
        run: Run,
        rows: list[dict[str, Any]],
        circumstances: dict[str, Any],
        checkpoints: Collection[str] | None = None,
    ) -> None:
        """Store a trained and measured run; `checkpoints` are the moments whose parameters are kept (None: all)."""
        self.put(run.spec.spec_id, encode(run, rows, circumstances, checkpoints))

    def put(self, spec_id: str, files: RunFiles) -> None:
        """Put a run in place. A run that is there already stays: it is the same, by its address.

        It gives way only to one that holds all that it does and more: parameters of other moments, or measures of
        other families or moments. Raises `UserError` where the disk refuses; nothing half-written is left under its
        name.
        """
        target, part = self.runs / spec_id, self.runs / f".{spec_id}.{os.getpid()}.part"
        with locked(self.root / WRITERS, shared=True), explained(target):
            try:
                shutil.rmtree(part, ignore_errors=True)  # of a dead process that had our number
                part.mkdir(parents=True)
                for name, content in files.items():
                    (part / name).write_bytes(content)
                    sync(part / name)
                while True:
                    with suppress(FileNotFoundError):  # another process may move it away while we look
                        if target.exists() and held(part) > held(target):
                            shutil.rmtree(target)
                    try:
                        part.rename(target)
                        sync(self.runs)
                    except OSError as error:
                        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                            raise
                        if not target.exists():  # it was there, and has been moved away since
                            continue
                    break  # ours is in place, or another process, or an earlier run, was first
            finally:
                shutil.rmtree(part, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait for, then be, the only process that changes the tables or moves what is damaged."""
        if self._locked:
            yield
            return
        with locked(self.root / ".lock"):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def write_tables(self, runs: pl.DataFrame, curves: pl.DataFrame, circumstances: dict[str, Any]) -> None:
        """All tables, then the manifest that vouches for them and accounts for their runs' shards.

        The families' rows are those that are stored of the runs.
        """
        with self.writing():
            ids = sorted(set(runs["spec_id"])) if len(runs) else []
            measures = measured.every(self, ids)
            self.tables.write(runs, curves, self.shards(ids), measures=measures, **circumstances)

    def set_aside(self, spec_id: str) -> Path:
        """Move a damaged run out of the way, so that it is trained anew; nothing is deleted."""
        return self._aside(self.runs / spec_id)

    def _aside(self, path: Path) -> Path:
        aside = self.root / "damaged"
        with explained(aside):
            aside.mkdir(parents=True, exist_ok=True)
            target = next(p for n in range(10**6) if not (p := aside / f"{path.name}.{n}").exists())
            path.rename(target)
        return target

    def set_tables_aside(self) -> dict[str, str]:
        """Move damaged tables and checkpoints out of the way; one sentence for each, by its name."""
        with self.writing():
            said = self.tables.damage()
            for name in said:
                if self.tables and (name.startswith("checkpoints/") or name in FILES):  # what can be missing
                    self.tables.without(name)
                if (self.root / name).exists():
                    said[name] += f"; it was set aside as {self._aside(self.root / name)}"
        return said

    def sweep(self) -> None:
        """Remove what interrupted writers left behind, and states whose runs are all stored."""
        states = self.root / FOLDER
        if parts := [*self.runs.glob(".*.part"), *states.glob(".*.part")]:
            # While nobody writes these are dead writers', whoever has their numbers now.
            with locked(self.root / WRITERS):
                for part in parts:
                    shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        there = set(self.spec_ids()) if any(states.glob("*")) else set()
        for state in states.glob("*.safetensors"):
            if (runs := runs_of(state)) and there.issuperset(runs):
                state.unlink(missing_ok=True)

    # --- Checking

    def record(self, spec_id: str, *, deep: bool = True) -> dict[str, Any]:
        """The record of a run that has a directory, once it and (if `deep`) every file it names is found whole.

        Raises `Broken`, which names the file.
        """
        directory = self.runs / spec_id
        path = directory / RECORD
        record = read_json(path)
        if record is None:
            raise Broken(f"{path} is missing or damaged")
        if not {"spec_id", "settings", "files"} <= record.keys():
            raise Broken(f"{path} is not a record, or another version's")
        if record["spec_id"] != spec_id:
            raise Broken(f"{path} is damaged: it is the record of another run, {record['spec_id']}")
        settings = accounts.settings([accounts.of_record(record)])[spec_id]
        if address(settings) != spec_id:
            raise Broken(f"{path} is damaged: its settings are those of another run, {address(settings)}")
        for name, expected in record["files"].items() if deep else ():
            file = directory / name
            if not file.exists() or sha256(file) != expected:
                raise Broken(f"{file} is missing or damaged: it does not match its checksum")
        return record

    def damage(self) -> list[str]:
        """Every damaged run, table or checkpoint, one sentence each."""
        found = []
        for spec_id in self.directories():
            try:
                self.record(spec_id)
            except Broken as broken:
                found.append(str(broken))
        return found + list(self.tables.damage().values())

    # --- Reading

    def moments(self, spec_ids: Iterable[str]) -> pl.DataFrame:
        """Measures of these runs at every moment, joined with their specs. Raises `Broken` where a run is missing."""

        def directory(spec_id: str) -> pl.DataFrame:
            spec = {k: pl.lit(v).alias(k) for k, v in self.record(spec_id)["spec"].items()}
            return pl.read_parquet(self.runs / spec_id / MOMENTS).with_columns(**spec)

        def table() -> pl.DataFrame:  # a run stands there once a study
            rows = self.tables.table(RUNS).unique(("spec_id", "moment"), keep="first", maintain_order=True)
            return rows.drop("study", "arm", strict=False)

        return self._gathered(spec_ids, directory, table)

    def curves(self, spec_ids: Iterable[str]) -> pl.DataFrame:
        """What these runs looked like at every step looked at. Raises `Broken` where a run is missing."""

        def directory(spec_id: str) -> pl.DataFrame:
            self.record(spec_id)
            return pl.read_parquet(self.runs / spec_id / CURVE)

        return self._gathered(spec_ids, directory, lambda: self.tables.table(CURVES))

    def _gathered(
        self,
        spec_ids: Iterable[str],
        directory: Callable[[str], pl.DataFrame],
        table: Callable[[], pl.DataFrame],
    ) -> pl.DataFrame:
        """Rows of these runs in their order, each from its directory if it has one, else from the tables."""
        ids = list(dict.fromkeys(spec_ids))
        tabled = self._tabled_only(ids)
        frames = [directory(spec_id) for spec_id in ids if spec_id not in tabled]
        if tabled:
            frames.append(table().filter(pl.col("spec_id").is_in(list(tabled))))
        if not frames:
            return pl.DataFrame()
        order = pl.DataFrame({"spec_id": ids})
        rows = pl.concat(frames, how="diagonal_relaxed")
        return order.join(rows, on="spec_id", maintain_order="left_right")

    def _tabled_only(self, spec_ids: Iterable[str]) -> set[str]:
        without = [i for i in spec_ids if not (self.runs / i).exists()]
        return set(without) & self.tabled().keys() if without else set()

    def shards(self, spec_ids: Iterable[str]) -> list[Shard]:
        """Who trained these runs: see `shards`."""
        ids = set(spec_ids)
        tabled = self._tabled_only(ids)
        own = [accounts.of_record(self.record(spec_id, deep=False)) for spec_id in ids - tabled]
        return accounts.joined(own + (accounts.of_runs(self.tables.shards(), tabled) if tabled else []))

    def checkpoint_file(self, spec_id: str) -> Path | None:
        """A run's parameters, found whole; None where none are stored. Raises `Broken`."""
        if (self.runs / spec_id).exists() and CHECKPOINT in self.record(spec_id)["files"]:
            return self.runs / spec_id / CHECKPOINT
        return self.tables.file(checkpoint_name(spec_id)) if spec_id in self.tables.checkpoints() else None

    def checkpoint(self, spec_id: str, moment: str) -> Parameters:
        """One model's parameters at a moment. Raises `UserError` where the run or the moment is not there."""
        from safetensors.torch import load_file

        path = self.checkpoint_file(spec_id)
        if path is None:
            self.moments([spec_id])  # a run that is not there at all is said to be missing
            raise UserError(f"run {spec_id} was stored without its parameters")
        if moment not in kept(path):
            raise UserError(f"run {spec_id} has no parameters of '{moment}'; it has {', '.join(kept(path))}")
        tensors = load_file(path)
        return {n.removeprefix(f"{moment}/"): t for n, t in tensors.items() if n.startswith(f"{moment}/")}

    def table(self, name: str) -> pl.DataFrame:
        """A table, if it is what the manifest says. Raises `Broken`, which says how to get it back."""
        return self.tables.table(name)
