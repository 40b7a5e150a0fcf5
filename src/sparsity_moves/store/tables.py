"""A folder's tables, and the manifest that vouches for them.

    runs.parquet        one row a study, model and moment; a run that no study asks for has none
    curves.parquet      one row a model and step looked at
    <family>.parquet    measures, keyed by run and moment (see `families`); where no run has any there is no file
    checkpoints/        a few models' parameters, `<spec_id>.safetensors`
    manifest.json       sha256 of all of these and of itself; every shard's device, packages, time and memory

They change together. New tables are first laid beside the old ones; the new manifest's rename is the moment
from which they count; then they take their places. Whoever is killed on the way leaves the old tables or the new
ones, and `file` finds which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_moves.errors import UserError
from sparsity_moves.names import Family
from sparsity_moves.store import families
from sparsity_moves.store.files import read_json, sha256, write_bytes, write_json
from sparsity_moves.store.run_files import address, parquet
from sparsity_moves.store.shards import Shard, settings

RUNS, CURVES, MANIFEST = "runs.parquet", "curves.parquet", "manifest.json"
TABLES = (RUNS, CURVES)
"""What every run has rows in."""
EVERY = (*TABLES, *families.FILES)
PACKAGES = ("torch", "numpy", "polars", "safetensors", "sparsity-moves")


class Broken(UserError):
    """A stored file that is not what was written."""


def versions() -> dict[str, str]:
    """Of the packages that decide what a run is; those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def checkpoint_name(spec_id: str) -> str:
    return f"checkpoints/{spec_id}.safetensors"


class Tables:
    """A folder's tables, its checkpoints and its manifest. One writer at a time: the store sees to that."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._again = f"`sparsity-moves train --profile {root.name}` writes it anew"
        self._read: tuple[object, dict[str, Any]] | None = None
        self._seen: tuple[object, dict[str, Any], dict[str, dict[str, Any]]] | None = None

    def __bool__(self) -> bool:
        return (self.root / MANIFEST).exists()

    def manifest(self) -> dict[str, Any]:
        """What vouches for the tables; read again when changed. Raises `Broken`."""
        key = self._stat(self.root / MANIFEST)
        if self._read is None or self._read[0] != key:
            manifest = read_json(self.root / MANIFEST)
            if manifest is None:
                raise Broken(f"{self.root / MANIFEST} is missing or damaged; {self._again}")
            self._read = key, manifest
        return self._read[1]

    def file(self, name: str) -> Path:
        """A file that the manifest names, found whole. Raises `Broken`, which says how to get it back."""
        expected = self.manifest()["files"].get(name)
        path, there = self.root / name, False
        for place in (path, self._next(name), path):  # a writer may be moving it from there to here
            try:
                if sha256(place) == expected:
                    return place
                there = there or place == path
            except OSError:
                continue
        why = "damaged: it does not match its checksum in the manifest" if there else "missing"
        raise Broken(f"{path} is {why}; {self._again}")

    def table(self, name: str) -> pl.DataFrame:
        """A table, if it is what the manifest says; of a family that no run has, an empty one. Raises `Broken`."""
        if name in families.FILES and name not in self.manifest()["files"]:
            return families.nothing(families.FILES[name])
        return pl.read_parquet(self.file(name))

    def family(self, family: Family) -> pl.DataFrame:
        """The rows of a family. Raises `Broken`."""
        return self.table(families.file_name(family)) if self else families.nothing(family)

    def whole(self) -> dict[str, Any]:
        """The manifest, once the tables that every run stands in are found whole; `Broken` otherwise.

        Looked at again when changed.
        """
        key = tuple(self._stat(p) for n in TABLES for p in (self.root / n, self._next(n)))
        key = (*key, self._stat(self.root / MANIFEST))
        if self._seen is None or self._seen[0] != key:
            for name in TABLES:
                self.file(name)
            manifest = self.manifest()
            self._seen = key, manifest, settings(manifest["shards"])
        return self._seen[1]

    def shards(self) -> list[Shard]:
        return list(self.whole()["shards"]) if self else []

    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings of every run that stands in the tables, by spec_id."""
        if not self:
            return {}
        self.whole()
        assert self._seen is not None
        return self._seen[2]

    def checkpoints(self) -> list[str]:
        """The runs whose parameters lie beside the tables."""
        names = self.manifest()["files"] if self else {}
        return [Path(name).stem for name in names if name.startswith("checkpoints/")]

    def damage(self) -> dict[str, str]:
        """One sentence for every file that is not what the manifest says, by its name."""
        if not self:
            alone = [name for name in EVERY if (self.root / name).exists()]
            why = f"{MANIFEST}, which vouches for it, is missing; {self._again}"
            return {name: f"{self.root / name} is there, but {why}" for name in alone}
        found = {}
        try:
            names = [*self.manifest()["files"]]
        except Broken as broken:
            return {MANIFEST: str(broken)}
        for name in names:
            try:
                self.file(name)
            except Broken as broken:
                found[name] = str(broken)
        return found or self._foreign()

    def _foreign(self) -> dict[str, str]:
        """Whole tables that speak of other runs than the manifest does, or give them other settings."""
        settings = self.settings()
        for spec_id, own in settings.items():
            if address(own) != spec_id:
                return {
                    MANIFEST: f"{self.root / MANIFEST} gives run {spec_id} the settings of {address(own)}"
                }
        for name in TABLES:
            if self._spec_ids(name) != settings.keys():
                return {name: f"{self.root / name} and {MANIFEST} speak of different runs; {self._again}"}
        for name in set(families.FILES) & self.manifest()["files"].keys():
            if not self._spec_ids(name) <= settings.keys():
                return {name: f"{self.root / name} speaks of runs that {MANIFEST} does not; {self._again}"}
        for row in self.table(RUNS).unique("spec_id").iter_rows(named=True):
            own = settings[row["spec_id"]]
            if wrong := [key for key in own if key in row and row[key] != own[key]]:
                return {
                    RUNS: f"{self.root / RUNS} gives run {row['spec_id']} another {wrong[0]} than its address says"
                }
        return {}

    def _spec_ids(self, name: str) -> set[str]:
        return set(pl.read_parquet(self.file(name), columns=["spec_id"])["spec_id"])

    def write(
        self,
        runs: pl.DataFrame,
        curves: pl.DataFrame,
        shards: list[Shard],
        checkpoints: Mapping[str, bytes] | None = None,
        measures: Mapping[Family, pl.DataFrame] | None = None,
        **circumstances: Any,
    ) -> None:
        """Put new tables in place of the old, and add checkpoints to those that are there.

        The families in `measures` are all that there are afterwards; without it they stay as they are. What has
        not changed is not written again. Raises `UserError` where the disk refuses; the old tables are still there.
        """
        contents = {RUNS: parquet(runs), CURVES: parquet(curves)}
        if measures is not None:
            contents |= {families.file_name(f): parquet(rows) for f, rows in measures.items() if len(rows)}
        added = {checkpoint_name(spec_id): content for spec_id, content in (checkpoints or {}).items()}
        old = read_json(self.root / MANIFEST) or {}
        if whole := self._are_whole():
            self._settle()
        replaced = TABLES if measures is None else EVERY
        files = {name: sha for name, sha in old.get("files", {}).items() if name not in replaced}
        files |= {name: hashlib.sha256(content).hexdigest() for name, content in (added | contents).items()}
        if whole and (old["files"], old["shards"]) == (files, shards):
            return
        manifest = {
            "files": files,
            "packages": versions(),
            "runs": runs["spec_id"].n_unique() if len(runs) else 0,
            "shards": shards,
            **circumstances,
        }
        try:
            for name, content in added.items():
                write_bytes(self.root / name, content)
            for name, content in contents.items():
                write_bytes(self._next(name), content)
            write_json(self.root / MANIFEST, manifest)
        except UserError:
            for name in EVERY:
                self._next(name).unlink(missing_ok=True)
            raise
        self._settle()
        for name in set(families.FILES) - files.keys():
            (self.root / name).unlink(missing_ok=True)

    def without(self, name: str) -> None:
        """Have the manifest no longer speak of a checkpoint, or of a family's table."""
        manifest = {k: v for k, v in self.manifest().items() if k != "sha256"}
        files = {file: sha for file, sha in manifest["files"].items() if file != name}
        write_json(self.root / MANIFEST, manifest | {"files": files})

    def _are_whole(self) -> bool:
        try:
            return bool(self) and bool(self.whole())
        except Broken:
            return False

    def _next(self, name: str) -> Path:
        return self.root / f".{name}.next"

    def _settle(self) -> None:
        """Finish what a writer began who had got as far as the manifest; drop what one left before that."""
        named = self.manifest()["files"]
        for name in EVERY:
            if (following := self._next(name)).exists():
                if name in named and self.file(name) == following:
                    following.replace(self.root / name)
                else:
                    following.unlink()

    @staticmethod
    def _stat(path: Path) -> tuple[int, int, int] | None:
        try:
            stat = path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
