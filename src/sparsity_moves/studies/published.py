"""What Smithline & Mascioli (2026) report, as a table, and our own tables at their scale once they are there.

`published.csv` holds one number a row, so that no chapter and no figure types one in. `source` says where the
number stands: `paper` (its text), `code` (their public code and its tables), `notes` (their earlier notes, with
GLU widths that were not yet matched), `figure` (read by eye off a published figure, so rounded).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import polars as pl

from sparsity_moves.errors import UserError
from sparsity_moves.names import Moment, results_folder
from sparsity_moves.store import Store

SOURCES = {
    "paper": "stated in the paper",
    "code": "from the authors' public code and tables",
    "notes": "from the authors' earlier notes",
    "figure": "read off a published figure",
}
RANK = ("paper", "code", "figure", "notes")
"""Which source stands for a number that several give: the first here."""

PAPER_MOMENT: dict[str, Moment] = {
    "add7": "first_best",
    "modular_addition": "grokked",
    "histogram": "first_best",
}
"""The checkpoint that the paper's ablations look at, task by task."""


@cache
def published() -> pl.DataFrame:
    """Every published number. Empty `setting` is the primary protocol; empty `detail` is the whole."""
    text = dict.fromkeys(
        ("task", "arm", "setting", "measure", "detail", "moment", "unit", "source"), pl.String
    )
    types = {**text, "value": pl.Float64, "sd": pl.Float64, "n": pl.Int64}
    path = Path(__file__).with_suffix(".csv")
    table = pl.read_csv(path, schema_overrides=types).with_columns(pl.col(pl.String).fill_null(""))
    return table.with_columns(pl.col("source").replace_strict(SOURCES).alias("source_text"))


def find(
    task: str, arm: str, measure: str, *, setting: str = "", detail: str = ""
) -> dict[str, str | float | None]:
    """One published number with all that is known of it.

    Raises `UserError` where there is none.
    """
    wanted = {"task": task, "arm": arm, "measure": measure, "setting": setting, "detail": detail}
    rows = best(published()).filter(**wanted)
    if rows.is_empty():
        raise UserError(f"no published number for {', '.join(v for v in wanted.values() if v)}")
    return rows.row(0, named=True)


def best(table: pl.DataFrame) -> pl.DataFrame:
    """One row a number: where several sources give it, the first of `RANK`."""
    key = ("task", "arm", "setting", "measure", "detail")
    rank = pl.col("source").replace_strict({name: i for i, name in enumerate(RANK)}, return_dtype=pl.Int8)
    return table.sort(rank, maintain_order=True).unique(key, keep="first", maintain_order=True)


def full_scale(study: str) -> pl.DataFrame | None:
    """Our own runs of a study at the paper's scale (the rows of `results/paper/runs.parquet`), or None.

    None where no such table is stored, or where it has no run of this study. Raises `Broken` where the table is
    damaged.
    """
    store = Store(results_folder("paper"))
    if not (store.root / "manifest.json").exists():
        return None
    rows = store.table("runs.parquet").filter(study=study)
    return None if rows.is_empty() else rows


def full_curves(study: str) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    """Curves of our own runs of a study at the paper's scale, with `task`, `arm`, `seed`; and their moments."""
    moments = full_scale(study)
    if moments is None:
        return None
    names = moments.select("spec_id", "task", "arm", "seed").unique(maintain_order=True)
    curves = Store(results_folder("paper")).table("curves.parquet")
    return names.join(curves, on="spec_id", maintain_order="left_right"), moments


def full_experts() -> pl.DataFrame | None:
    """Our own runs of the paper's MoE with any number of experts, at its scale; one is the dense layer. Or None."""
    found = [rows for name in ("redistribution", "experts") if (rows := full_scale(name)) is not None]
    if not found:
        return None
    moe = {"task": "add7", "gated": False, "gate": "renormalised", "top_k": 1}
    rows = pl.concat(found, how="diagonal_relaxed").filter(pl.col("router").is_in(["none", "learned"]), **moe)
    return rows.unique(("spec_id", "moment"), maintain_order=True)
