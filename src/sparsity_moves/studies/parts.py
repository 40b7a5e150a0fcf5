"""Numbers of a part of a model, found in the tables of measures: an output digit, a carry length, a kind of neuron.

Each of the published details is a filter on one table (`ablation.parquet`, `patching.parquet`, `fourier.parquet`),
and the mean over what it leaves is a model's number. The tables are keyed by run and moment.
"""

from __future__ import annotations

from typing import Any

import polars as pl

DIGITS = ("ones", "tens", "hundreds", "overflow")
"""Output digits of the paper's add-7, by their read-out."""
Row = dict[str, Any]


def part(row: Row) -> tuple[str, str, pl.Expr] | None:
    """The table that holds a detail, its column, and which of its rows; None where there is no such table."""
    measure, (kind, _, value) = row["measure"], row["detail"].partition("=")
    if measure == "no_ffn_accuracy":
        whole = (pl.col("component") == "ffn") & (pl.col("how") == "zero") & pl.col("operation").is_null()
        if kind == "digit":
            return (
                "ablation",
                "accuracy",
                whole & pl.col("carry").is_null() & (pl.col("position") == DIGITS.index(value)),
            )
        return "ablation", "accuracy", whole & pl.col("position").is_null() & (pl.col("carry") == int(value))
    if (
        measure.endswith("_flip_rate") and kind == "digit"
    ):  # the published figure does not match the input digit
        here = (pl.col("component") == measure.removesuffix("_flip_rate")) & ~pl.col("matched")
        return "patching", "flip_rate", here & (pl.col("position") == DIGITS.index(value))
    if measure == "fourier_concentration":
        first = pl.col("index") == pl.col("index").min().over("spec_id", "moment", "site")
        each = {
            "per neuron": pl.col("site") == "neurons",
            "per live neuron": pl.col("site") == "live_neurons",
            "top principal component": (pl.col("site") == "components") & first,
            # the mean over the strongest ten; of an MoE over its experts, not over the layer as one
            "weights": (pl.col("site") == "weights")
            & (pl.col("expert").is_not_null() | (pl.col("expert").count().over("spec_id", "moment") == 0)),
        }
        column = row["setting"].removeprefix("convention=") or "full"
        return "fourier", column, each[row["detail"]]
    return None


def values(row: Row, table: pl.DataFrame) -> pl.DataFrame:
    """`spec_id`, `moment` and `value`: of every model of a table its mean over the rows that a detail names."""
    found = part(row)
    assert found is not None
    _, column, chosen = found
    rows = table.filter(chosen).drop_nulls(column)
    return rows.group_by("spec_id", "moment").agg(pl.col(column).mean().alias("value"))
