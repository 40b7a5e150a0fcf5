"""Words that the command line shares with the code that trains, kept where no torch is needed to know them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

Profile = Literal["smoke", "laptop", "paper"]
Moment = Literal["first_best", "grokked", "final"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)
TaskName = Literal["add7", "modular_addition", "histogram"]
EngineName = Literal["local", "ray"]
LooksName = Literal["usage", "language"]
"""Runs of which looks over training are kept, and nothing else (`store.looks`)."""
Family = Literal[
    "ablation",
    "attention",
    "attribution",
    "patching",
    "probes",
    "routing",
    "fourier",
    "neurons",
    "progress",
    "strategy",
]
FAMILIES: tuple[Family, ...] = get_args(Family)
"""Measures that have a table of their own, `<family>.parquet`, beside runs.parquet."""


def checkout() -> Path:
    """The folder of `_toc.yml`, looked for upwards, as a notebook runs in `book/`; outside of one, where we are."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "_toc.yml").exists()), here)


def results_folder(profile: Profile | LooksName) -> Path:
    """Where a profile's runs, or a kind of looks, lie: `results/<name>` of the checkout, or under
    SPARSITY_MOVES_RESULTS. Outside of a checkout `results` is made here.
    """
    if elsewhere := os.environ.get("SPARSITY_MOVES_RESULTS"):
        return Path(elsewhere) / profile
    return Path(os.path.relpath(checkout() / "results")) / profile
