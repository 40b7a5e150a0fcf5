"""When a model groks: one symbol a seed on modular addition, and those that never did at the edge."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from sparsity_moves.figures.ablation import STAR
from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import LANES, marks, nothing_yet
from sparsity_moves.figures.summary import summaries
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.published import best, published
from sparsity_moves.studies.sweeps import FAMILIES

ARMS = (
    *("dense", "narrow", "glu", "moe", "moe_frozen", "moe_switch", "moe_glu", "moe_top2"),
    *("dense_norm", "glu_norm", "moe_norm", "moe_glu_norm"),
    *("dense_dropout0.1", "dense_dropout0.3", "dense_wd0.5", "dense_wd2"),
    *("moe_e2", "moe_e8", "moe_e16", "moe_glu_top2"),
)
"""The arms, then those of the sweeps; of each those that have runs are drawn."""
TASK = "modular_addition"


def grokking(argument: Argument, arms: Sequence[str] = ARMS) -> Figure | Text:
    """The step at which each model grokked."""
    rows = argument.moments(TASK, arms)
    if rows.is_empty():
        return nothing_yet("Modular addition")
    own = argument.beside(TASK, arms)
    every = [("main", rows), *([("own", own)] if own is not None else [])]
    there = [arm for arm in arms if any(arm in set(each["arm"]) for _, each in every)]
    last = max(int(each["steps"].max()) for _, each in every)  # type: ignore[arg-type]
    edge = round(last * 1.06)
    models = pl.concat(_models(each, lane, edge) for lane, each in every)
    means = summaries(models.filter("grokked"), ["arm", "lane"], "step").with_columns(
        pl.col("mean", "low", "high").round()
    )
    share = models.group_by("arm", "lane", maintain_order=True).agg(
        pl.format("{} of {}", pl.col("grokked").sum(), pl.len()).alias("words")
    )
    named = pl.struct("arm", "setting").map_elements(lambda row: _name(**row), return_dtype=pl.String)
    theirs = best(published()).filter(task=TASK, measure="grokked_step").with_columns(named.alias("arm"))
    theirs = theirs.filter(pl.col("arm").is_in(there))
    if argument.profile != "paper":  # another modulus, another length of training
        theirs = theirs.clear()
    theirs = theirs.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        "value",
        "source_text",
        pl.lit(LANES["paper"]).alias("lane"),
    )
    lanes = [LANES[name] for name, _ in every] + ([LANES["paper"]] if len(theirs) else [])
    labels = [arm_label(arm) for arm in there]
    scale = alt.Scale(domain=[0, round(last * 1.25)], nice=False)
    y = alt.Y("arm:N", sort=labels, title=None, scale=alt.Scale(domain=labels), axis=alt.Axis(labelLimit=200))
    lane = alt.YOffset("lane:N", sort=None, scale=alt.Scale(domain=lanes))
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
        alt.Tooltip("lane:N", title="from"),
        alt.Tooltip("mean:Q", title="mean step"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds that grokked"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]
    average = alt.Chart(means)
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
            lane,
            colour,
            alt.Shape("arm:N", scale=arm_shapes(there), legend=None),
            tooltip=[
                alt.Tooltip("arm:N", title="FFN"),
                "seed:O",
                alt.Tooltip("lane:N", title="from"),
                "step:Q",
                "grokked:N",
                alt.Tooltip("spec_id:N", title="run"),
            ],
        ),
        alt.Chart(share).mark_text(align="left", dx=8).encode(alt.X(datum=edge), y, lane, text="words:N"),
        average.mark_rule(strokeWidth=2.5).encode(alt.X("low:Q"), alt.X2("high:Q"), y, lane, tooltip=tips),
        average.mark_tick(thickness=3, size=13, color="currentColor").encode(
            alt.X("mean:Q"), y, lane, tooltip=tips
        ),
        alt.Chart(theirs)
        .mark_point(size=200, **STAR)
        .encode(
            alt.X("value:Q"),
            y,
            lane,
            colour,
            tooltip=[alt.Tooltip("value:Q", title="published"), alt.Tooltip("source_text:N", title="source")],
        ),
    ]
    chart = alt.layer(*layers).resolve_scale(color="independent", shape="independent")
    return show(
        chart.properties(width=470, height=alt.Step(15, **{"for": "offset"})).add_params(pick),
        name="grokking",
        caption=(
            f"When each model of modular addition grokked; at the right edge those that had not by step {last:,}, "
            f"and how many of each did. {marks(rows, own)} Means are over those that did. "
            "Stars: published {cite:p}`smithline2026`, at the paper's setting. A step is one pass over all "
            "training pairs, the paper's epoch."
        ),
        alt="Training step of grokking by layer: "
        + ", ".join(f"{arm} {words} grokked ({lane})" for arm, lane, words in share.iter_rows())
        + ".",
        data=models,
    )


def _name(arm: str, setting: str) -> str:
    """What the sweeps call an arm at a published setting: `dense` at `norm=rms` is `dense_norm`."""
    field, _, value = setting.partition("=")
    for family in FAMILIES.values():
        for suffix, settings in family.points.items():
            if {key: str(own).removesuffix(".0") for key, own in settings.items()} == {field: value}:
                return f"{arm}_{suffix}"
    return arm


def _models(rows: pl.DataFrame, lane: str, edge: int) -> pl.DataFrame:
    """One row a model: the step at which it grokked, or the right edge."""
    grokked = rows.filter(moment="grokked").select("spec_id", pl.col("step").cast(pl.Int64).alias("at"))
    every = rows.filter(moment="final").join(grokked, on="spec_id", how="left", maintain_order="left")
    return every.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        pl.col("seed").cast(pl.Int64),
        pl.col("at").fill_null(edge).alias("step"),
        pl.col("at").is_not_null().alias("grokked"),
        (pl.col("no_ffn_accuracy") * 100).round(1).alias("percent"),
        "spec_id",
        pl.lit(LANES[lane]).alias("lane"),
    )
