"""Runs on disk, addressed by their spec.

    results/<profile>/
        runs/<spec_id>/     moments.parquet · curve.parquet · checkpoint.safetensors · record.json
        runs.parquet        one row a study, model and moment        } tables, written anew from the runs
        curves.parquet      one row a model and step looked at       }
        manifest.json       sha256 of every table, versions, device, wall time

A run's directory appears in one rename, complete, or not at all; `record.json` holds the other files' checksums
and its own. Tables hold nothing that a second training on the same machine would not give again, bit by bit:
wall times and versions are in the records and the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
from safetensors.torch import load_file
from safetensors.torch import save as safetensors

from sparsity_moves.errors import UserError
from sparsity_moves.model import Parameters
from sparsity_moves.store.files import explained, sha256, sync, write_bytes, write_json
from sparsity_moves.training import Run, Spec

FILES = ("moments.parquet", "curve.parquet", "checkpoint.safetensors")
TABLES = ("runs.parquet", "curves.parquet")
PACKAGES = ("torch", "numpy", "polars", "safetensors", "sparsity-moves")


class Broken(UserError):
    """A stored file that is not what was written."""


def _digest(record: dict[str, Any]) -> str:
    body = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def parquet(frame: pl.DataFrame) -> bytes:
    """A table's file. We write it ourselves: polars reports a disk that refuses in errors of its own."""
    buffer = BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


class Store:
    """The runs of one directory. Safe to write from several processes at once."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.runs = self.root / "runs"

    def has(self, spec: Spec) -> bool:
        return (self.runs / spec.spec_id / "record.json").exists()

    def save(self, run: Run, rows: list[dict[str, Any]], circumstances: dict[str, Any]) -> None:
        """Put a run in place. A run that is there already stays: it is the same, by its address.

        Raises `UserError` where the disk refuses; nothing half-written is left under the run's name.
        """
        spec = run.spec
        target, part = self.runs / spec.spec_id, self.runs / f".{spec.spec_id}.{os.getpid()}.part"
        with explained(target):
            try:
                shutil.rmtree(part, ignore_errors=True)  # of a dead process that had our number
                part.mkdir(parents=True)
                key = pl.lit(spec.spec_id).alias("spec_id")
                moments = pl.DataFrame(rows, infer_schema_length=None).select(key, pl.all())
                (part / FILES[0]).write_bytes(parquet(moments))
                (part / FILES[1]).write_bytes(parquet(pl.DataFrame(run.curve).select(key, pl.all())))
                tensors = {f"{m}/{n}": t for m, at in run.moments.items() for n, t in at.parameters.items()}
                (part / FILES[2]).write_bytes(safetensors(tensors, {"spec": spec.canonical}))
                record = {
                    "spec_id": spec.spec_id,
                    "spec": dataclasses.asdict(spec),
                    "files": {name: sha256(part / name) for name in FILES},
                    "moments": {name: moment.step for name, moment in run.moments.items()},
                    **circumstances,
                }
                (part / "record.json").write_text(json.dumps(record | {"sha256": _digest(record)}, indent=1))
                for name in (*FILES, "record.json"):
                    sync(part / name)
                try:
                    part.rename(target)
                    sync(self.runs)
                except OSError:  # another process, or an earlier run, was first
                    if not target.exists():
                        raise
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def record(self, spec_id: str, *, deep: bool = True) -> dict[str, Any]:
        """A run's record, once it and (if `deep`) every file it names has been found whole.

        Raises `Broken`, which names the file.
        """
        directory = self.runs / spec_id
        path = directory / "record.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            whole = isinstance(record, dict) and record.get("sha256") == _digest(record)
        except (OSError, ValueError, RecursionError):
            whole = False
        if not whole:
            raise Broken(f"{path} is missing or damaged")
        if record["spec_id"] != spec_id:
            raise Broken(f"{path} is damaged: it is the record of another run, {record['spec_id']}")
        for name in FILES if deep else ():
            file = directory / name
            if not file.exists() or sha256(file) != record["files"][name]:
                raise Broken(f"{file} is missing or damaged: it does not match its checksum")
        return dict(record)

    def spec_ids(self) -> list[str]:
        """The address of every run there is, in order."""
        return sorted(p.name for p in self.runs.glob("*") if p.is_dir() and not p.name.startswith("."))

    def damage(self) -> list[str]:
        """Every damaged run or table, one sentence each."""
        found = []
        for spec_id in self.spec_ids():
            try:
                self.record(spec_id)
            except Broken as broken:
                found.append(str(broken))
        if (self.root / "manifest.json").exists():
            for name in TABLES:
                try:
                    self.table(name)
                except Broken as broken:
                    found.append(str(broken))
        return found

    def set_aside(self, spec_id: str) -> Path:
        """Move a damaged run out of the way, so that it is trained anew; nothing is deleted."""
        aside = self.root / "damaged"
        with explained(aside):
            aside.mkdir(parents=True, exist_ok=True)
            target = next(p for n in range(10**6) if not (p := aside / f"{spec_id}.{n}").exists())
            (self.runs / spec_id).rename(target)
        return target

    def sweep(self) -> None:
        """Remove what interrupted writers of this machine left behind."""
        for part in self.runs.glob(".*.part"):
            owner = part.name.split(".")[-2]
            if not (owner.isdigit() and alive(int(owner))):
                shutil.rmtree(part, ignore_errors=True)

    def moments(self, spec_ids: Iterable[str]) -> pl.DataFrame:
        """Measures of these runs at every moment, joined with their specs."""
        frames = []
        for spec_id in spec_ids:
            spec = {k: pl.lit(v).alias(k) for k, v in self.record(spec_id)["spec"].items()}
            frames.append(pl.read_parquet(self.runs / spec_id / FILES[0]).with_columns(**spec))
        return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()

    def curves(self, spec_ids: Iterable[str]) -> pl.DataFrame:
        frames = [pl.read_parquet(self.runs / spec_id / FILES[1]) for spec_id in spec_ids]
        return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()

    def checkpoint(self, spec_id: str, moment: str) -> Parameters:
        """One model's parameters at a moment. Raises `UserError` where the run or the moment is not there."""
        record = self.record(spec_id)
        if moment not in record["moments"]:
            raise UserError(f"run {spec_id} has no moment '{moment}'; it has {', '.join(record['moments'])}")
        tensors = load_file(self.runs / spec_id / FILES[2])
        return {n.removeprefix(f"{moment}/"): t for n, t in tensors.items() if n.startswith(f"{moment}/")}

    def write_tables(self, runs: pl.DataFrame, curves: pl.DataFrame, circumstances: dict[str, Any]) -> None:
        """Both tables, then the manifest that vouches for them."""
        for name, frame in zip(TABLES, (runs, curves), strict=True):
            write_bytes(self.root / name, parquet(frame))
        manifest = {
            "files": {name: sha256(self.root / name) for name in TABLES},
            "packages": {name: version(name) for name in PACKAGES},
            "runs": runs["spec_id"].n_unique() if len(runs) else 0,
            **circumstances,
        }
        write_json(self.root / "manifest.json", manifest)

    def table(self, name: str) -> pl.DataFrame:
        """A table, if it is what the manifest says. Raises `Broken`, which says how to get it back."""
        path = self.root / name
        again = f"`sparsity-moves train --profile {self.root.name}` writes it anew"
        try:
            manifest = json.loads((self.root / "manifest.json").read_text(encoding="utf-8"))
            expected = manifest["files"][name]
        except (OSError, ValueError, KeyError, TypeError):
            raise Broken(f"{self.root / 'manifest.json'} is missing or damaged; {again}") from None
        if not path.exists():
            raise Broken(f"{path} is missing; {again}")
        if sha256(path) != expected:
            raise Broken(f"{path} is damaged: it does not match its checksum in the manifest; {again}")
        return pl.read_parquet(path)
