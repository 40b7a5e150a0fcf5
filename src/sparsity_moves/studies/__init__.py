"""Which runs a chapter needs, and the way from them to tables: train what is missing, then read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sparsity_moves.errors import UserError
from sparsity_moves.store import Store, Taken
from sparsity_moves.store import merge as merge_pack
from sparsity_moves.store.shards import seconds as training_seconds
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


def run(study: Study, *, moment: str | None = None) -> Results:
    """Train what the store misses of a study, then give its tables.

    Where a `moment` is named, the runs' parameters then are wanted too (tables alone do not hold them).

    Progress is shown in a terminal and in JupyterLab, not while the book is built: it would end up in the page.
    """
    where = store(study.profile)
    engine.run(study.specs, where, moment=moment, quiet="SPARSITY_MOVES_DATA_DIR" in os.environ)
    return results(study, where)


def write_tables(profile: Profile) -> None:
    """runs.parquet, curves.parquet and manifest.json of a profile, from what is stored of its studies."""
    where = store(profile)
    with where.writing():
        runs, curves = tables(every(profile), where)
        shards = where.shards(set(runs["spec_id"]))
        circumstances: dict[str, Any] = {
            "devices": sorted({s["device"] for s in shards}),
            "training_seconds": round(training_seconds(shards), 1),
            "peak_bytes": max((s["peak_bytes"] or 0 for s in shards), default=0) or None,
            "source_commit": source_commit(),
        }
        where.write_tables(runs, curves, circumstances)


def merge(profile: Profile, folder: Path) -> Taken:
    """Bring the runs of a pack into a profile's tables. Raises `UserError` where they do not belong there."""
    foreign = {s["profile"] for s in Store(folder).settings().values()} - {profile}
    if foreign:
        raise UserError(
            f"{folder} holds runs of the profile {min(foreign)}, not {profile}; nothing was taken"
        )
    taken = merge_pack(store(profile), folder)
    write_tables(profile)
    return taken


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
    "merge",
    "redistribution",
    "results",
    "run",
    "seeds",
    "store",
    "sweep",
    "write_tables",
]
