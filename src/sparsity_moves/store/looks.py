"""Runs of which only looks are kept: one table, a row a look, and a manifest that vouches for it.

For what is no `Spec` of the three tasks (a language model), or is looked at more closely than their curves (how trees
are used). A run's address is the hash of its settings, as everywhere; a run that is there is not run again.

    looks.parquet    `run`, the settings, and the columns of the looks
    manifest.json    sha256 of the table and of itself; each run's settings, device, packages and seconds
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_moves.store.files import locked, read_json, sha256, write_bytes, write_json
from sparsity_moves.store.run_files import address, parquet
from sparsity_moves.store.tables import MANIFEST, Broken, versions

LOOKS = "looks.parquet"
NEXT = ".looks.parquet.next"
"""A new table, until the manifest that speaks of it is written: from then on it counts."""
Settings = Mapping[str, Any]


class Looks:
    """The looks under a folder, which is made when the first are added."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def table(self) -> pl.DataFrame:
        """All looks; no columns where there are none yet. Raises `Broken` for a damaged table or manifest."""
        manifest = self.manifest()
        if manifest is None:
            return pl.DataFrame()
        return pl.read_parquet(self._file(manifest))

    def _file(self, manifest: dict[str, Any]) -> Path:
        """The table that the manifest speaks of: in its place, or still beside it where a writer was ended."""
        for path in (self.root / LOOKS, self.root / NEXT):
            if path.exists() and sha256(path) == manifest["files"][LOOKS]:
                return path
        raise Broken(
            f"{self.root / LOOKS} is missing or damaged: it does not match its checksum in {MANIFEST}"
        )

    def manifest(self) -> dict[str, Any] | None:
        """What is known of the runs; None where there are none. Raises `Broken`."""
        manifest = read_json(self.root / MANIFEST)
        if manifest is None and (self.root / LOOKS).exists():
            raise Broken(
                f"{self.root / MANIFEST} is missing or damaged; put it back, or take {LOOKS} away too"
            )
        return manifest

    def missing(self, settings: Iterable[Settings]) -> list[Settings]:
        """Those of these settings that have no run yet, in their order."""
        there = (self.manifest() or {"runs": {}})["runs"]
        return [own for own in settings if address(dict(own)) not in there]

    def add(self, runs: Sequence[tuple[Settings, Sequence[dict[str, Any]]]], **about: Any) -> None:
        """Add runs, settings and looks of each, or replace them; `about` says how they came to be."""
        with locked(self.root / ".lock"):
            manifest = self.manifest() or {"runs": {}}
            if manifest["runs"] and (there := self._file(manifest)).name == NEXT:
                there.replace(self.root / LOOKS)
            own = {address(dict(settings)): (dict(settings), rows) for settings, rows in runs}
            frames = [
                pl.DataFrame([{"run": run, **settings, **row} for row in rows], infer_schema_length=None)
                for run, (settings, rows) in own.items()
            ]
            old = self.table()
            if len(old):
                frames.insert(0, old.filter(~pl.col("run").is_in(list(own))))
            write_bytes(self.root / NEXT, parquet(pl.concat(frames, how="diagonal_relaxed")))
            known = manifest["runs"] | {
                run: {"settings": settings, "packages": versions(), **about}
                for run, (settings, _) in own.items()
            }
            write_json(self.root / MANIFEST, {"files": {LOOKS: sha256(self.root / NEXT)}, "runs": known})
            (self.root / NEXT).replace(self.root / LOOKS)
