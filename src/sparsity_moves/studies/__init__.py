"""Which runs a chapter needs, and the way from them to tables: train what is missing, then read.

What trains is imported when it is asked for, so that published numbers and certificates can be read, and checked,
where there is no torch.
"""

from __future__ import annotations

import os
import subprocess
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsity_moves.errors import UserError
from sparsity_moves.names import results_folder
from sparsity_moves.store import Store, Taken
from sparsity_moves.store import merge as merge_pack
from sparsity_moves.store.shards import seconds as training_seconds

if TYPE_CHECKING:
    from sparsity_moves.names import Profile
    from sparsity_moves.studies import (
        argument,
        controls,
        engine,
        measuring,
        redistribution,
        sweep,
        sweeps,
        trees,
        usage,
    )
    from sparsity_moves.studies.arms import ARMS, arm
    from sparsity_moves.studies.cost import training_flops
    from sparsity_moves.studies.keeping import kept
    from sparsity_moves.studies.study import Results, Study, measures, results, seeds, tables

CHAPTERS = ("redistribution", "sweep", "argument", "trees")
"""Studies that the chapters show, and that a reader's machine trains."""

_MODULES = (
    "argument", "controls", "engine", "measuring", "redistribution", "sweep", "sweeps", "trees", "usage",
)  # fmt: skip
_HOME = {"ARMS": "arms", "arm": "arms", "kept": "keeping", "training_flops": "cost"} | dict.fromkeys(
    ("Results", "Study", "measures", "results", "seeds", "tables"), "study"
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def store(profile: Profile) -> Store:
    """Where a profile's runs are stored. Raises `UserError` for a profile that is not there."""
    from sparsity_moves.training import settings

    settings(profile, "add7")
    return Store(results_folder(profile))


def every(profile: Profile) -> list[Study]:
    """All studies at their default settings: the chapters'; at full scale controls and sweeps too."""
    shown = [name for name in CHAPTERS if (name, profile) != ("argument", "paper")]  # there they are controls
    found: list[Study] = [import_module(f"{__name__}.{name}").study(profile) for name in shown]
    if profile != "laptop":  # whose minutes belong to the chapters
        found.append(import_module(f"{__name__}.controls").study(profile))
    if profile == "paper":
        found += import_module(f"{__name__}.sweeps").studies(profile)
    return found


def run(study: Study, *, moment: str | None = None) -> Results:
    """Train what the store misses of a study, measure what it lacks where its parameters are stored; give its tables.

    Where a `moment` is named, the runs' parameters then are wanted too (tables alone do not hold them).
    Progress is shown in a terminal and in JupyterLab, not while the book is built: it would end up in the page.
    """
    from sparsity_moves.studies import engine, measuring
    from sparsity_moves.studies.study import results

    where = store(study.profile)
    engine.run(study.specs, where, moment=moment, quiet="SPARSITY_MOVES_DATA_DIR" in os.environ)
    measuring.fill(study.specs, where)
    return results(study, where)


def write_tables(profile: Profile) -> None:
    """All tables and manifest.json of a profile, from what is stored of its studies."""
    from sparsity_moves.studies.study import tables

    where = store(profile)
    studies = every(profile)
    wanted = {spec.spec_id for study in studies for spec in study.specs}
    with where.writing():
        if wanted.isdisjoint(where.spec_ids()) and not where.tabled():
            return  # only runs that no study asks for
        runs, curves = tables(studies, where)
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
    "argument",
    "arm",
    "controls",
    "engine",
    "every",
    "kept",
    "measures",
    "measuring",
    "merge",
    "redistribution",
    "results",
    "run",
    "seeds",
    "store",
    "sweep",
    "sweeps",
    "tables",
    "training_flops",
    "trees",
    "usage",
    "write_tables",
]
