"""Does it hold elsewhere? The shift, MoE minus dense, with one setting changed at a time."""

from collections.abc import Iterator

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.claim_words import signed
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import LANES, REPLACED, checkpoint, marks, nothing_yet, selected
from sparsity_moves.figures.summary import differences, summaries
from sparsity_moves.figures.theme import ARMS, arm_label
from sparsity_moves.studies import arm, sweeps
from sparsity_moves.studies.argument import Argument

VARIED = ("norm", "activation", "model_width", "depth", "beta2")
"""Families of `sweeps` that vary both the dense layer and the MoE."""
AS_IS = "as in the paper"


def conditions(task: str = "add7") -> Iterator[tuple[str, str, str]]:
    """Each condition in words, with the names of its MoE and its dense arm; the paper's own first."""
    yield AS_IS, "moe", "dense"
    known = sweeps.known("paper", task)
    for family in VARIED:
        for suffix, settings in sweeps.FAMILIES[family].points.items():
            names = [
                known.get(arm(name, "paper", task, 0, **settings), f"{name}_{suffix}")  # type: ignore[arg-type]
                for name in ("moe", "dense")
            ]
            if names[0] != "moe":  # at its own setting it is the first condition
                yield arm_label(f"moe_{suffix}").removeprefix("MoE, "), names[0], names[1]


def unmeasured(argument: Argument, task: str = "add7") -> str:
    """A sentence that names the conditions without full-scale runs; empty where all are there."""
    left = [words for words, *names in conditions(task) if argument.missing(task, names)]
    return (
        f"*Not yet run at this scale: {'; '.join(left)}. They join the figure when they are.*" if left else ""
    )


def generality(argument: Argument, task: str = "add7") -> Figure | Text:
    """MoE minus dense, paired by seed, under every condition that the tables have."""
    every = [name for _, *names in conditions(task) for name in names]
    main, own = argument.moments(task, every), argument.beside(task, every)
    lanes = [("main", main)] + ([("own", own)] if own is not None else [])
    parts = [each for lane, rows in lanes for each in _shifts(rows, lane, task)]
    if not parts:
        return nothing_yet("This comparison")
    rows = pl.concat(parts)
    means = summaries(rows, ["condition", "lane", "moment", "measure"], "points").with_columns(
        pl.col("mean", "low", "high").round(2)
    )
    order = [words for words, *_ in conditions(task) if words in set(rows["condition"])]
    y = alt.Y("condition:N", sort=order, title=None, scale=alt.Scale(domain=order, paddingInner=0.3))
    lane = alt.YOffset("lane:N", sort=None, scale=alt.Scale(domain=[LANES[name] for name, _ in lanes]))
    here = "datum.measure == measure && datum.moment == checkpoint"
    average = alt.Chart(means).transform_filter(here)
    tips = [
        alt.Tooltip("condition:N"),
        alt.Tooltip("lane:N", title="from"),
        alt.Tooltip("mean:Q", format="+.1f"),
        alt.Tooltip("low:Q", title="95 % CI from", format="+.1f"),
        alt.Tooltip("high:Q", title="to", format="+.1f"),
        alt.Tooltip("n:Q", title="pairs"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]
    chart = alt.layer(
        alt.Chart(pl.DataFrame({"none": [0]})).mark_rule(strokeWidth=1).encode(alt.X("none:Q")),
        alt.Chart(rows)
        .transform_filter(here)
        .mark_point(
            shape=ARMS["moe"].shape,
            filled=False,
            size=32,
            strokeWidth=1.3,
            opacity=0.75,
            color=ARMS["moe"].colour,
        )
        .encode(
            alt.X("points:Q", title="Shift: MoE minus dense, without the FFN (points)"),
            y,
            lane,
            tooltip=["condition:N", "seed:O", alt.Tooltip("lane:N", title="from"), "points:Q"],
        ),
        average.mark_rule(strokeWidth=2.5).encode(alt.X("low:Q"), alt.X2("high:Q"), y, lane, tooltip=tips),
        average.mark_tick(thickness=3, size=14, color="currentColor").encode(
            alt.X("mean:Q"), y, lane, tooltip=tips
        ),
    ).properties(width=440, height=alt.Step(20, **{"for": "offset"}))
    said = means.filter(moment="first_best", measure="no_ffn_accuracy")
    return show(
        chart.add_params(
            selected("measure", "The FFN's output is", REPLACED),
            checkpoint(*dict(lanes).values()),
        ),
        name="generality",
        caption=(
            "The shift on addition with one setting changed, MoE minus dense of the same setting and seed. "
            + marks(main, own).replace("One symbol a model", "One symbol a pair")
        ),
        alt="The shift in points at the paper's checkpoint: "
        + ", ".join(
            f"{words} {signed(mean, 1)} ({lane})"
            for words, lane, mean in said.select("condition", "lane", "mean").iter_rows()
        )
        + ".",
        data=rows,
    )


def _shifts(rows: pl.DataFrame, lane: str, task: str) -> Iterator[pl.DataFrame]:
    there = set(rows["arm"]) if len(rows) else set()
    for words, moe, dense in conditions(task):
        if {moe, dense} <= there:
            both = rows.filter(pl.col("arm").is_in([moe, dense]))
            for measure in REPLACED:
                yield differences(both, ["moment"], measure, against=dense).select(
                    pl.lit(words).alias("condition"),
                    "seed",
                    "moment",
                    pl.lit(measure).alias("measure"),
                    (pl.col("difference") * 100).round(2).alias("points"),
                    pl.lit(LANES[lane]).alias("lane"),
                )
