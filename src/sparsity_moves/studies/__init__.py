"""Which runs a chapter needs, and the way from them to tables: train what is missing, then read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sparsity_moves.store import Store
from sparsity_moves.studies import engine, redistribution, sweep
from sparsity_moves.studies.arms import ARMS, arm
from sparsity_moves.studies.study import Results, Study, results, seeds, tables
from sparsity_moves.training import Profile, settings

CHAPTERS = {"redistribution": (redistribution, sweep)}
"""Studies by the chapter that shows them."""


def store(profile: Profile) -> Store:
    """Where a profile's runs lie: `results/<profile>` of the checkout, or under SPARSITY_MOVES_RESULTS.

    A notebook runs in `book/`, so the checkout is looked for upwards; outside of one, `results` is made here.
    """
    settings(profile, "add7")  # refuses a profile that is not there
    if elsewhere := os.environ.get("SPARSITY_MOVES_RESULTS"):
        return Store(Path(elsewhere) / profile)
    here = Path.cwd()
    checkout = next((folder for folder in (here, *here.parents) if (folder / "_toc.yml").exists()), here)
    return Store(Path(os.path.relpath(checkout / "results")) / profile)


def every(profile: Profile) -> list[Study]:
    """All studies of the book at their default settings."""
    return [module.study(profile) for modules in CHAPTERS.values() for module in modules]


def run(study: Study) -> Results:
    """Train what the store misses of a study, then give its tables.

    Progress is shown in a terminal and in JupyterLab, not while the book is built: it would end up in the page.
    """
    where = store(study.profile)
    engine.run(study.specs, where, quiet="SPARSITY_MOVES_DATA_DIR" in os.environ)
    return results(study, where)


def write_tables(profile: Profile) -> None:
    """runs.parquet, curves.parquet and manifest.json of a profile, from its stored runs."""
    where = store(profile)
    runs, curves = tables(every(profile), where)
    records = [where.record(spec_id, deep=False) for spec_id in sorted(set(runs["spec_id"]))]
    circumstances: dict[str, Any] = {
        "devices": sorted({r["device"] for r in records}),
        "training_seconds": round(sum(r["shard_seconds"] / r["shard_models"] for r in records), 1),
        "peak_bytes": max((r["peak_bytes"] or 0 for r in records), default=0) or None,
        "source_commit": source_commit(),
    }
    where.write_tables(runs, curves, circumstances)


def source_commit() -> str | None:
    """The commit of the source tree, None outside a git checkout."""
    import subprocess

    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


__all__ = [
    "ARMS",
    "CHAPTERS",
    "Results",
    "Study",
    "arm",
    "engine",
    "every",
    "redistribution",
    "results",
    "run",
    "seeds",
    "store",
    "sweep",
    "write_tables",
]
