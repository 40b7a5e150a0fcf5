"""Two ways to count: by comparing symbols in attention, or by gathering them for the FFN."""

import polars as pl

from sparsity_moves.figures.book_renderer import Figure
from sparsity_moves.figures.grouped import FOUR, Choice, grouped
from sparsity_moves.figures.prose import Text, table
from sparsity_moves.figures.strips import LANES
from sparsity_moves.figures.theme import arm_label
from sparsity_moves.figures.words import task_of
from sparsity_moves.studies.argument import Argument

TASK = "histogram"
ARMS = ("dense", "narrow", *FOUR[1:])
SITES = {"embedding": "embedding", "attention": "after attention", "ffn": "after the FFN"}


def read_rows(argument: Argument) -> pl.DataFrame:
    """Accuracy (%) of a linear read-out of the count, along the residual stream."""
    rows = argument.measured("strategy", TASK, ARMS)
    return rows.with_columns(
        part=pl.col("site").replace(SITES), value=100 * pl.col("accuracy").cast(pl.Float64)
    )


def read_outs(argument: Argument) -> Figure | Text:
    """Where the count can be read."""
    lines = []
    for lane in ("main", "own"):
        models = argument.lane(lane, TASK, FOUR)
        if models is not None and len(models):
            ((line, share), *_) = sorted(task_of(models).chance().items(), key=lambda item: -item[1])
            lines.append({"lane": lane, "value": round(100 * share, 2), "line": line})
    return grouped(
        argument,
        read_rows(argument),
        name="read-outs",
        caption="Accuracy of a linear read-out of the count behind embedding, attention and FFN.",
        title="Read-out's accuracy (%)",
        parts=tuple(SITES.values()),
        arms=ARMS,
        domain=(0, 100),
        lines=pl.DataFrame(lines) if lines else None,
    )


def strategies(argument: Argument) -> Text:
    """How many models count which way."""
    rows = argument.measured("strategy", TASK, ARMS).unique(("lane", "spec_id"), maintain_order=True)
    found = (
        rows.group_by("lane", "arm", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("models"),
            (pl.col("strategy") == "relation").sum().cast(pl.Int64).alias("by relation"),
        )
        .with_columns(
            pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
            pl.col("lane").replace(
                LANES | ({} if argument.profile == "paper" else {"main": argument.profile})
            ),
        )
    )
    return table(
        found.select(
            pl.col("arm").alias("FFN"),
            pl.col("lane").alias("runs"),
            "by relation",
            pl.col("models").alias("of models"),
        ),
        name="strategies",
        caption="Models in which attention lifts the read-out of the count more than the FFN does.",
    )


def relation_rows(argument: Argument) -> pl.DataFrame:
    """Attention weight on the token itself, on one of its symbol and on another, of all heads and of the best."""
    rows = argument.measured("attention", TASK, FOUR).drop_nulls("relation")
    names = {"self": "itself", "same": "the same symbol", "other": "another symbol"}
    rows = rows.with_columns(
        part=pl.col("relation").replace_strict(names, default=None, return_dtype=pl.String),
        value=pl.col("weight").cast(pl.Float64),
    )
    key = ["lane", "arm", "seed", "spec_id", "moment"]
    same = pl.col("value").filter(pl.col("relation") == "same").first().over(*key, "layer", "head")
    best = rows.with_columns(same=same).filter(pl.col("same") == pl.col("same").max().over(*key))
    tables = []
    for which, frame in (("mean", rows), ("best", best)):
        mean = frame.group_by([*key, "part"], maintain_order=True).agg(pl.col("value").mean())
        tables.append(mean.with_columns(heads=pl.lit(which)))
    return pl.concat(tables)


def relations(argument: Argument) -> Figure | Text:
    """Whether attention compares symbols."""
    lines = []
    for lane in ("main", "own"):
        models = argument.lane(lane, TASK, FOUR)
        if models is not None and len(models):
            lines.append(
                {"lane": lane, "value": round(1 / int(models["symbols"][0]), 4), "line": "all tokens alike"}
            )
    return grouped(
        argument,
        relation_rows(argument),
        name="relations",
        caption="Mean attention weight that a token gives to one token of each kind, on the histogram task.",
        title="Weight of one token",
        parts=("itself", "the same symbol", "another symbol"),
        choices={
            "heads": Choice(
                "Heads:", {"mean": "mean of all", "best": "the one that looks most at its own symbol"}
            )
        },
        lines=pl.DataFrame(lines) if lines else None,
    )
