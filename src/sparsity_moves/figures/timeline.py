"""When does it happen? Accuracy without the FFN over training, and every model at the step that a slider picks."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import LANES, nothing_yet
from sparsity_moves.figures.summary import METHOD, summaries
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes
from sparsity_moves.figures.words import profile, seeds, task_of
from sparsity_moves.studies.argument import Argument

ARMS = ("dense", "narrow", "moe_top2", "moe_active", "moe", "moe_switch")
LOOKS = 25
"""Steps that the slider stops at; all are in the tables."""


def shift_over_training(argument: Argument, arms: Sequence[str] = ARMS, task: str = "add7") -> Figure | Text:
    """Means of each arm over training, and below them every seed at one step."""
    curves = argument.curves(task, arms)
    there = [arm for arm in arms if arm in set(curves["arm"])]
    if not there:
        return nothing_yet("The course of training")
    moments = argument.moments(task, there)
    steps = curves["step"].unique().sort().to_list()
    every = max(1, len(steps) // LOOKS)
    steps = steps[every - 1 :: every]
    rows = curves.filter(pl.col("step").is_in(steps)).select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        "step",
        "seed",
        (pl.col("no_ffn_accuracy") * 100).round(1).alias("percent"),
    )
    wide = rows.with_columns(pl.format("at {}", "step")).pivot(
        "step", index=["arm", "seed"], values="percent"
    )
    means = summaries(rows, ["arm", "step"], "percent").with_columns(pl.col("mean", "low", "high").round(1))
    labels = [arm_label(arm) for arm in there]
    colour = alt.Color(
        "arm:N", scale=arm_colours(there), legend=alt.Legend(title=None, orient="top", columns=3)
    )
    spacing = steps[1] - steps[0] if len(steps) > 1 else 1
    slider = alt.param(
        name="at_step",
        value=steps[0],
        bind=alt.binding_range(min=steps[0], max=steps[-1], step=spacing, name="Training step "),
    )
    first = moments.filter(moment="first_best")["step"]
    x = alt.X("step:Q", title="Training step", scale=alt.Scale(domain=[0, steps[-1]]))
    y = alt.Y("mean:Q", title="Accuracy without the FFN (%)", scale=alt.Scale(domain=[0, 100]))
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        "step:Q",
        alt.Tooltip("mean:Q", title="mean (%)"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]
    base = alt.Chart(means)
    chance = pl.DataFrame(
        [{"value": round(100 * share, 2), "line": name} for name, share in task_of(moments).chance().items()]
    )
    looked = pl.DataFrame(
        {"low": [float(first.quantile(0.1) or 0)], "high": [float(first.quantile(0.9) or 0)]}
    )
    above = alt.layer(
        alt.Chart(looked)
        .mark_rect(opacity=0.15, color="#9c6e00", tooltip=None)
        .encode(alt.X("low:Q"), alt.X2("high:Q")),
        alt.Chart(chance)
        .mark_rule(strokeDash=[6, 4], opacity=0.6)
        .encode(
            alt.Y("value:Q"),
            tooltip=[alt.Tooltip("line:N", title="strategy"), alt.Tooltip("value:Q", title="accuracy (%)")],
        ),
        base.mark_area(opacity=0.2, tooltip=None).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), colour),
        base.mark_line(strokeWidth=2.5, point=alt.OverlayMarkDef(size=25)).encode(x, y, colour, tooltip=tips),
        base.transform_filter("datum.step == at_step").mark_rule(strokeWidth=2).encode(alt.X("step:Q")),
    ).properties(width=480, height=240)
    below = (
        alt.Chart(wide)
        .transform_calculate(percent="datum['at ' + at_step]")
        .mark_point(filled=False, size=30, strokeWidth=1.3, opacity=0.75)
        .encode(
            alt.X("percent:Q", title="Every seed at that step (%)", scale=alt.Scale(domain=[0, 100])),
            alt.Y("arm:N", sort=labels, title=None, axis=alt.Axis(labelLimit=200)),
            colour,
            alt.Shape("arm:N", scale=arm_shapes(there)),
            tooltip=[alt.Tooltip("arm:N", title="FFN"), "seed:O", "percent:Q"],
        )
        .properties(width=480, height=alt.Step(20))
    )
    own = _own(argument, there, task)
    if len(own):
        above += alt.Chart(own).mark_line(strokeWidth=2, strokeDash=[2, 3]).encode(x, y, colour, tooltip=tips)
    ends = means.filter(step=steps[-1])
    return show(
        alt.vconcat(above, below, spacing=16).add_params(slider),
        name="shift-over-training",
        caption=(
            f"Accuracy without the FFN over training. Lines and bands: mean and {METHOD} ({seeds(moments)}, "
            f"{profile(moments)}). Shaded column: where eight of ten models have their first best checkpoint, the "
            "one the paper looks at. Dashed: answers that need no computation. Below: every seed at that step."
            + (
                " Dotted: means of shorter runs, trained where these pages were built, on *this computer*."
                if len(own)
                else ""
            )
        ),
        alt=f"Lines over training steps. At step {steps[-1]}: "
        + ", ".join(f"{arm} {mean:.0f} %" for arm, mean in ends.select("arm", "mean").iter_rows())
        + ".",
        data=pl.concat(
            [means.with_columns(lane=pl.lit(LANES["main"])), own.with_columns(lane=pl.lit(LANES["own"]))]
        ),
    )


def _own(argument: Argument, arms: Sequence[str], task: str) -> pl.DataFrame:
    """Means of the reader's own runs at each of their looks; no rows where he has none."""
    rows = argument.curves(task, arms, own=True).select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        pl.col("step").cast(pl.Int64),
        "seed",
        (pl.col("no_ffn_accuracy") * 100).round(1).alias("percent"),
    )
    return summaries(rows, ["arm", "step"], "percent").with_columns(pl.col("mean", "low", "high").round(1))
