"""What one run is on disk: its files' bytes, and the address that its settings give it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sparsity_moves.names import Family
from sparsity_moves.store import families as tables
from sparsity_moves.store.files import digest

if TYPE_CHECKING:  # tables are read, and checked, where there is no torch
    from sparsity_moves.training import Run

MOMENTS, CURVE, CHECKPOINT, RECORD = (
    "moments.parquet",
    "curve.parquet",
    "checkpoint.safetensors",
    "record.json",
)

RunFiles = dict[str, bytes]
"""The files of one run: name to content."""


def parquet(frame: pl.DataFrame) -> bytes:
    """A table's file. We write it ourselves: polars reports a disk that refuses in errors of its own."""
    buffer = BytesIO()
    frame.rechunk().write_parquet(buffer)
    return buffer.getvalue()


def address(settings: dict[str, Any]) -> str:
    """The spec_id of a spec's settings and protocol (`Spec.canonical`), as `Spec.spec_id` computes it."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def encode(
    run: Run,
    rows: list[dict[str, Any]],
    circumstances: dict[str, Any],
    checkpoints: Collection[str] | None = None,
    families: Mapping[Family, Mapping[str, Sequence[Any]]] | None = None,
) -> RunFiles:
    """A trained and measured run's files.

    Args:
        run: what training gave.
        rows: its measures, one row a moment.
        circumstances: device, packages and what else the manifest accounts for; the same for a whole shard.
        checkpoints: the moments whose parameters are kept; all of them unless given.
        families: columns of the measures that have tables of their own; none unless given.
    """
    from safetensors.torch import save

    spec = run.spec
    key = pl.lit(spec.spec_id).alias("spec_id")
    moments = pl.DataFrame(rows, infer_schema_length=None).select(key, pl.all())
    files = {MOMENTS: parquet(moments), CURVE: parquet(pl.DataFrame(run.curve).select(key, pl.all()))}
    kept = [m for m in run.moments if checkpoints is None or m in checkpoints]
    if kept:
        tensors = {f"{m}/{n}": t for m in kept for n, t in run.moments[m].parameters.items()}
        files[CHECKPOINT] = save(tensors, {"spec": spec.canonical})
    files |= encoded(spec.spec_id, families or {})
    record = {
        "spec_id": spec.spec_id,
        "settings": json.loads(spec.canonical),
        "spec": dataclasses.asdict(spec),
        "moments": {name: moment.step for name, moment in run.moments.items()},
        **circumstances,
    }
    return recorded(record, files)


def encoded(spec_id: str, families: Mapping[Family, Mapping[str, Sequence[Any]]]) -> RunFiles:
    """The files of a run's measures."""
    return {
        tables.file_name(family): parquet(tables.table(family, spec_id, rows))
        for family, rows in families.items()
    }


def recorded(record: dict[str, Any], files: RunFiles) -> RunFiles:
    """A run's files with the record that vouches for them."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    record = {key: value for key, value in record.items() if key != "sha256"} | {"files": sums}
    text = json.dumps(record | {"sha256": digest(record)}, indent=1, allow_nan=False)
    return {**files, RECORD: text.encode()}


def header(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself; nothing where it is not there or no such file."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(size)) if size <= path.stat().st_size else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def kept(path: Path) -> list[str]:
    """The moments whose parameters a checkpoint file holds."""
    return list(dict.fromkeys(name.split("/")[0] for name in header(path) if name != "__metadata__"))
