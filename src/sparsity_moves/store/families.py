"""Tables of measures, one a family: their columns, and their bytes.

A run that was stored before a family was measured, or of which it is not measured, has no rows in its table; a table
without rows is no file. Which families a run has is seen from its files, or from the tables where it has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from sparsity_moves.names import FAMILIES, Family

TEXT, WHOLE, REAL, TRUTH = pl.String, pl.Int32, pl.Float32, pl.Boolean
Schema = dict[str, Any]

_CONCENTRATION: Schema = {"full": REAL, "full_sd": REAL, "paired": REAL, "paired_sd": REAL}
SCHEMAS: dict[Family, Schema] = {
    "ablation": {
        "component": TEXT,
        "layer": WHOLE,
        "head": WHOLE,
        "how": TEXT,
        "position": WHOLE,
        "operation": WHOLE,
        "carry": WHOLE,
        "accuracy": REAL,
    },
    "attention": {
        "layer": WHOLE,
        "head": WHOLE,
        "position": WHOLE,
        "key": WHOLE,
        "carry": WHOLE,
        "relation": TEXT,
        "weight": REAL,
    },
    "attribution": {
        "part": TEXT,
        "layer": WHOLE,
        "index": WHOLE,
        "position": WHOLE,
        **dict.fromkeys(("logit", "magnitude", "margin", "norm"), REAL),
    },
    "patching": {
        "component": TEXT,
        "position": WHOLE,
        "operation": WHOLE,
        "matched": TRUTH,
        **dict.fromkeys(("flip_rate", "operation_rate", "change_rate"), REAL),
    },
    "probes": {"recipe": TEXT, "site": TEXT, "position": WHOLE, "accuracy": REAL},
    "routing": {
        "expert": WHOLE,
        "operation": WHOLE,
        **dict.fromkeys(("load", "accuracy", "knocked_out"), REAL),
        **dict.fromkeys(("nmi", "within", "initial_nmi", "initial_within"), REAL),
    },
    "fourier": {
        "site": TEXT,
        "expert": WHOLE,
        "index": WHOLE,
        **_CONCENTRATION,
        "frequency": WHOLE,
        "share": REAL,
        "count": WHOLE,
    },
    "neurons": {
        "neuron": WHOLE,
        "expert": WHOLE,
        "full": REAL,
        "paired": REAL,
        "frequency": WHOLE,
        "power": REAL,
        "live": TRUTH,
    },
    "progress": {
        "split": TEXT,
        **dict.fromkeys(("loss", "restricted_loss", "excluded_loss"), REAL),
        "key_frequencies": WHOLE,
        "sum_share": REAL,
        "difference_share": REAL,
    },
    "strategy": {"site": TEXT, "accuracy": REAL, "lift": REAL, "strategy": TEXT},
}
KEY: Schema = {"spec_id": TEXT, "moment": TEXT}


def file_name(family: Family) -> str:
    return f"{family}.parquet"


FILES: dict[str, Family] = {file_name(family): family for family in FAMILIES}


def schema(family: Family) -> Schema:
    """Every column of a family's table, in order, and its type."""
    return {**KEY, **SCHEMAS[family]}


def nothing(family: Family) -> pl.DataFrame:
    """The table of a family that no run has."""
    return pl.DataFrame(schema=schema(family))


def table(family: Family, spec_id: str, rows: Mapping[str, Sequence[Any]]) -> pl.DataFrame:
    """A run's part of a family's table. A column that the rows lack is null; one that the family lacks, an error."""
    own = schema(family)
    if foreign := rows.keys() - own.keys():
        raise ValueError(f"the table of {family} has no column {', '.join(sorted(foreign))}")
    size = len(rows["moment"])
    values = {name: rows.get(name, [None] * size) for name in own if name != "spec_id"}
    return pl.DataFrame({"spec_id": [spec_id] * size, **values}, schema=own)


def together(family: Family, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The rows of several tables of a family; columns that an older version's lack are null."""
    return pl.concat([nothing(family), *frames], how="diagonal_relaxed").select(
        *schema(family), pl.exclude(*schema(family))
    )
