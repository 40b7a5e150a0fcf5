"""Matched in what? No-FFN accuracy against parameters in total, those that a token meets, or FLOPs."""

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import LANES, checkpoint, marks, nothing_yet, selected
from sparsity_moves.figures.summary import summaries
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes
from sparsity_moves.studies.argument import Argument

ARMS = (
    "dense",
    "narrow",
    "glu",
    "glu_bilinear",
    "moe",
    "moe_active",
    "moe_top2",
    "moe_glu",
    "moe_glu_active",
)
MATCHED = {
    "active_parameters": "parameters a token meets",
    "parameters": "parameters in total",
    "flops_per_token": "FLOPs a token",
}


def matching(argument: Argument, task: str = "add7") -> Figure | Text:
    """A cloud of seeds and a mean an arm; the axis is what one would match."""
    rows, own = argument.moments(task, ARMS), argument.beside(task, ARMS)
    if rows.is_empty():
        return nothing_yet("This comparison")
    every = [("main", rows), *([("own", own)] if own is not None else [])]
    there = [arm for arm in ARMS if any(arm in set(each["arm"]) for _, each in every)]
    models = pl.concat(
        each.select(
            pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
            pl.col("seed").cast(pl.Int64),
            "moment",
            "spec_id",
            pl.col(*MATCHED).cast(pl.Int64),
            (pl.col("no_ffn_accuracy") * 100).round(1).alias("percent"),
            pl.lit(LANES[lane]).alias("lane"),
        )
        for lane, each in every
    )
    means = summaries(models, ["arm", "moment", "lane", *MATCHED], "percent").with_columns(
        pl.col("mean", "low", "high").round(1)
    )
    x = alt.X(
        "size:Q",
        title="Size of the whole model",
        axis=alt.Axis(tickCount=5),
        scale=alt.Scale(zero=False, nice=False, padding=18),
    )
    scale = alt.Scale(domain=[0, 100])
    colour = alt.Color(
        "arm:N",
        scale=arm_colours(there),
        legend=alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1),
    )
    shape = alt.Shape("arm:N", scale=arm_shapes(there))
    here = "datum.moment == checkpoint"
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("lane:N", title="from"),
        alt.Tooltip("mean:Q", title="mean (%)"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
        *(alt.Tooltip(f"{name}:Q", title=words, format=",") for name, words in MATCHED.items()),
    ]
    size = {"size": "datum[matched]"}
    average = alt.Chart(means).transform_filter(here).transform_calculate(**size)
    chart = alt.layer(
        alt.Chart(models)
        .transform_filter(here)
        .transform_calculate(**size)
        .mark_point(filled=False, size=14, opacity=0.35)
        .encode(
            x,
            alt.Y("percent:Q"),
            colour,
            shape,
            tooltip=[
                alt.Tooltip("arm:N", title="FFN"),
                "seed:O",
                alt.Tooltip("lane:N", title="from"),
                "percent:Q",
                alt.Tooltip("spec_id:N", title="run"),
            ],
        ),
        average.mark_rule(strokeWidth=2.5).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), tooltip=tips),
        *(
            average.transform_filter(alt.datum.lane == LANES[lane])
            .mark_point(filled=lane == "main", size=130, opacity=1, strokeWidth=2.5)
            .encode(
                x,
                alt.Y("mean:Q", title="Accuracy without the FFN (%)", scale=scale),
                colour,
                shape,
                tooltip=tips,
            )
            for lane, _ in every
        ),
    ).properties(width=470, height=340)
    return show(
        chart.add_params(
            selected("matched", "Along the axis:", MATCHED), checkpoint(*(each for _, each in every))
        ),
        name="matching",
        caption=(
            "The same models laid out by what one could match. If that size decided, all would lie on one curve. "
            "Large symbols: means"
            + (", hollow on this computer. " if own is not None else ". ")
            + marks(rows, own).replace("tick and bar", "symbol and bar")
        ),
        alt="Accuracy without the FFN against model size: "
        + ", ".join(
            f"{arm} {mean:.0f} % at {active} active parameters"
            for arm, mean, active in means.filter(moment="first_best", lane=LANES["main"])
            .select("arm", "mean", "active_parameters")
            .iter_rows()
        )
        + ".",
        data=models,
    )
