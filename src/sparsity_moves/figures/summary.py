"""From one row a model to what a figure says of many: means, bootstrap intervals, paired differences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from sparsity_moves.studies.statistics import METHOD as METHOD  # figures say how an interval was made
from sparsity_moves.studies.statistics import intervals
from sparsity_moves.training.fleet import GROKKED

CONVERGED = {"add7": ("exact_match", 0.995), "histogram": ("accuracy", 0.98)}
"""From which share on a model counts as having learned its task. Modular addition: from when it has grokked."""


@dataclass(frozen=True)
class Summary:
    """A mean over seeds and its interval; no interval for a single seed."""

    mean: float
    sd: float
    low: float | None
    high: float | None
    n: int


def summary(values: Sequence[float]) -> Summary:
    """Mean, standard deviation (ddof = 0, as the paper's) and bootstrap interval of at least one value."""
    (found,) = of_each([values])
    return found


def summaries(rows: pl.DataFrame, by: Sequence[str], value: str) -> pl.DataFrame:
    """`summary` of a column in every group: the columns of `by`, then mean, sd, low, high, n.

    Where the rows have a `seed`, `seeds` names those of the group.
    """
    own = [name for name in ("seed",) if name in rows.columns]
    groups = rows.group_by(by, maintain_order=True).agg(pl.col(value, *own))
    found = pl.DataFrame(
        [vars(each) for each in of_each(groups[value].to_list())],
        schema=dict.fromkeys(("mean", "sd", "low", "high"), pl.Float64) | {"n": pl.Int64},
    )
    named = [pl.Series("seeds", [spans(seeds) for seeds in groups["seed"]], pl.String)] if own else []
    return groups.select(by).hstack(found).hstack(named)


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers in order, neighbours together: "0–3, 42"."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join("–".join(map(str, span)) for span in found)


def of_each(groups: Sequence[Sequence[float]]) -> list[Summary]:
    """`summary` of every group of values."""
    if not all(len(values) for values in groups):
        raise ValueError("a mean needs at least one value")
    found = []
    for values, bounds in zip(groups, intervals(groups), strict=True):
        data = np.asarray(values, dtype=float)
        low, high = bounds or (None, None)
        found.append(Summary(float(data.mean()), float(data.std()), low, high, len(data)))
    return found


def differences(rows: pl.DataFrame, by: Sequence[str], value: str, against: str = "dense") -> pl.DataFrame:
    """Each arm minus `against`, seed by seed, one row a pair, as `difference`.

    Two arms of one seed start with the same attention and see the same data, so pairing takes away what the
    seed alone decides. Seeds that one of the two lacks are left out.
    """
    key = [*by, "seed"]
    reference = rows.filter(arm=against).select(*key, pl.col(value).alias("reference"))
    paired = rows.filter(pl.col("arm") != against).join(reference, on=key, maintain_order="left")
    return paired.select(*by, "arm", "seed", (pl.col(value) - pl.col("reference")).alias("difference"))


def with_convergence(moments: pl.DataFrame) -> pl.DataFrame:
    """Adds `converged`: whether this model has learned its task, at this moment.

    A model of modular addition has if it ever passed the grokking threshold on its held-out pairs, whatever it
    does later.
    """
    grokked = moments.filter(moment="grokked")["spec_id"].unique().to_list()
    learned = pl.col("spec_id").is_in(grokked)
    for task, (column, share) in CONVERGED.items():
        learned = pl.when(task=task).then(pl.col(column) >= share).otherwise(learned)
    return moments.with_columns(learned.alias("converged"))


def criterion(task: str) -> str:
    """In words, when a model counts as having learned the task."""
    if task not in CONVERGED:
        return f"more than {GROKKED:.0%} of its held-out pairs right at some look".replace("%", "\u00a0%")
    column, share = CONVERGED[task]
    what = {"exact_match": "of all inputs entirely right", "accuracy": "of the answers right"}[column]
    return f"at least {100 * share:g}\u00a0% {what}"


def value(rows: pl.DataFrame, column: str, **where: object) -> Summary:
    """The summary of one column over the rows that fit."""
    return summary(rows.filter(**where)[column].to_list())
