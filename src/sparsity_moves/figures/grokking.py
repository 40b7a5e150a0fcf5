"""When a model groks: one symbol a seed on modular addition, and those that never did at the edge."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from sparsity_moves.figures.ablation import STAR
from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import nothing_yet
from sparsity_moves.figures.summary import METHOD, summaries
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes
from sparsity_moves.figures.words import profile, seeds
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.published import best, published

ARMS = (
    *("dense", "narrow", "glu", "moe", "moe_frozen", "moe_switch", "moe_glu", "moe_top2"),
    *("dense_norm", "moe_norm", "dense_dropout0.1", "dense_wd2", "moe_e2", "moe_e8", "moe_e16"),
)
TASK = "modular_addition"


def grokking(argument: Argument, arms: Sequence[str] = ARMS) -> Figure | Text:
    """The step at which each model grokked."""
    rows = argument.moments(TASK, arms)
    if rows.is_empty():
        return nothing_yet("Modular addition")
    there = [arm for arm in arms if arm in set(rows["arm"])]
    grokked = rows.filter(moment="grokked").select("spec_id", pl.col("step").alias("at"))
    every = rows.filter(moment="final").join(grokked, on="spec_id", how="left", maintain_order="left")
    last = int(every["steps"].max())  # type: ignore[arg-type]
    edge = round(last * 1.06)
    models = every.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        "seed",
        pl.col("at").fill_null(edge).alias("step"),
        pl.col("at").is_not_null().alias("grokked"),
        (pl.col("no_ffn_accuracy") * 100).round(1).alias("percent"),
        "spec_id",
    )
    means = summaries(models.filter("grokked"), ["arm"], "step").with_columns(
        pl.col("mean", "low", "high").round()
    )
    share = models.group_by("arm", maintain_order=True).agg(
        pl.format("{} of {}", pl.col("grokked").sum(), pl.len()).alias("words")
    )
    theirs = best(published()).filter(
        pl.col("arm").is_in(there), task=TASK, measure="grokked_step", setting=""
    )
    if argument.profile != "paper":  # another modulus, another length of training
        theirs = theirs.clear()
    theirs = theirs.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String), "value", "source_text"
    )
    labels = [arm_label(arm) for arm in there]
    scale = alt.Scale(domain=[0, round(last * 1.25)], nice=False)
    y = alt.Y("arm:N", sort=labels, title=None, scale=alt.Scale(domain=labels), axis=alt.Axis(labelLimit=200))
    colour = alt.Color("arm:N", scale=arm_colours(there), legend=None)
    pick = alt.param(
        name="shown",
        value="all",
        bind=alt.binding_select(
            options=["all", "grokked"], labels=["all models", "those that grokked"], name="Show "
        ),
    )
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("mean:Q", title="mean step"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds that grokked"),
    ]
    layers: list[alt.Chart] = [
        alt.Chart(models)
        .transform_filter("shown == 'all' || datum.grokked")
        .mark_point(filled=False, size=40, strokeWidth=1.3, opacity=0.8)
        .encode(
            alt.X(
                "step:Q",
                title="Training step at which it grokked",
                scale=scale,
                axis=alt.Axis(values=list(range(0, last + 1, max(1, last // 4)))),
            ),
            y,
            colour,
            alt.Shape("arm:N", scale=arm_shapes(there), legend=None),
            tooltip=[
                alt.Tooltip("arm:N", title="FFN"),
                "seed:O",
                "step:Q",
                "grokked:N",
                alt.Tooltip("spec_id:N", title="run"),
            ],
        ),
        alt.Chart(share).mark_text(align="left", dx=8).encode(alt.X(datum=edge), y, text="words:N"),
        alt.Chart(means).mark_rule(strokeWidth=2.5).encode(alt.X("low:Q"), alt.X2("high:Q"), y, tooltip=tips),
        alt.Chart(means)
        .mark_tick(thickness=3, size=16, color="currentColor")
        .encode(alt.X("mean:Q"), y, tooltip=tips),
        alt.Chart(theirs)
        .mark_point(shape=STAR, size=200, yOffset=9)
        .encode(
            alt.X("value:Q"),
            y,
            colour,
            tooltip=[alt.Tooltip("value:Q", title="published"), alt.Tooltip("source_text:N", title="source")],
        ),
    ]
    chart = alt.layer(*layers).resolve_scale(color="independent", shape="independent")
    return show(
        chart.properties(width=470, height=alt.Step(26)).add_params(pick),
        name="grokking",
        caption=(
            f"When each model of modular addition grokked; at the right edge those that had not by step {last:,}, "
            f"and how many of each did. Tick and bar: mean and {METHOD}, over those that did "
            f"({seeds(every)}, {profile(every)}). "
            "Stars: published {cite:p}`smithline2026`, at the paper's setting."
        ),
        alt="Training step of grokking by layer: "
        + ", ".join(f"{arm} {words} grokked" for arm, words in share.iter_rows())
        + ".",
        data=models,
    )
