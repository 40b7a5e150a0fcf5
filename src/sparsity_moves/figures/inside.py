"""Numbers of parts of a model, from the tables of measures: by output digit, by carry, patched, by frequency."""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from sparsity_moves.figures.ablation import STAR
from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import nothing_yet, selected
from sparsity_moves.figures.summary import METHOD, summaries
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.claims import Part, Side
from sparsity_moves.studies.evidence import Absent
from sparsity_moves.studies.published import PAPER_MOMENT, best, published

FOUR = ("dense", "glu", "moe", "moe_glu")
"""The arms that the paper looks into."""


def parts(
    argument: Argument,
    details: Mapping[str, str],
    *,
    name: str,
    caption: str,
    measures: Mapping[str, str],
    title: str,
    task: str = "add7",
    arms: Sequence[str] = FOUR,
    setting: str = "",
    moments: Sequence[str] = (),
) -> Figure | Text:
    """One value a model for every part, arms side by side, means with intervals, published values as stars.

    Args:
        argument: the tables.
        details: the parts as `published.csv` names them, in words.
        name, caption: of the figure; the caption goes on with what the marks are.
        measures: the measures to choose from, in words.
        title: of the axis.
        task, arms: of the runs.
        setting: as `published.csv` has it.
        moments: checkpoints in the order of trial: the first that has rows is shown. The paper's unless given.
    """
    rows = [
        {"arm": arm_label(arm), "part": words, "measure": measure, "seed": seed, "value": round(value, 4)}
        for arm in arms
        for detail, words in details.items()
        for measure in measures
        for seed, value in _values(argument, task, arm, measure, setting, detail, moments).items()
    ]
    if not rows:
        return nothing_yet("This measure")
    models = pl.DataFrame(rows)
    means = summaries(models, ["arm", "part", "measure"], "value").with_columns(
        pl.col("mean", "low", "high").round(4)
    )
    there = [arm for arm in arms if arm_label(arm) in set(models["arm"])]
    beside = best(published()).filter(
        pl.col("arm").is_in(there),
        pl.col("measure").is_in(list(measures)),
        pl.col("detail").is_in(list(details)),
        task=task,
        setting=setting,
    )
    beside = beside.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        pl.col("detail").replace_strict(dict(details), default=None).alias("part"),
        "measure",
        "value",
        "source_text",
    )
    top = 100 if Part("more", task, next(iter(measures)), (Side(), Side())).unit == "percent" else 1
    x = alt.X("part:N", sort=list(details.values()), title=None, axis=alt.Axis(labelAngle=0))
    y = alt.Y("value:Q", title=title, scale=alt.Scale(domain=[0, top]))
    offset = alt.XOffset("arm:N", sort=[arm_label(arm) for arm in there])
    colour = alt.Color(
        "arm:N", scale=arm_colours(there), legend=alt.Legend(title=None, orient="top", symbolOpacity=1)
    )
    here = "datum.measure == measure"
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("part:N"),
        alt.Tooltip("mean:Q"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds"),
    ]
    average = alt.Chart(means).transform_filter(here)
    chart = alt.layer(
        alt.Chart(models)
        .transform_filter(here)
        .mark_point(filled=False, size=24, strokeWidth=1.2, opacity=0.6)
        .encode(
            x,
            y,
            offset,
            colour,
            alt.Shape("arm:N", scale=arm_shapes(there)),
            tooltip=["arm:N", "seed:O", "value:Q"],
        ),
        average.mark_rule(strokeWidth=2.5).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), offset, tooltip=tips),
        average.mark_tick(thickness=3, size=14, color="currentColor").encode(
            x, alt.Y("mean:Q"), offset, tooltip=tips
        ),
        alt.Chart(beside)
        .transform_filter(here)
        .mark_point(shape=STAR, size=170, xOffset=9)
        .encode(
            x,
            y,
            offset,
            colour,
            tooltip=[
                "arm:N",
                alt.Tooltip("value:Q", title="published"),
                alt.Tooltip("source_text:N", title="source"),
            ],
        ),
    ).properties(width=480, height=260)
    only = alt.param(name="measure", value=next(iter(measures)))
    pick = selected("measure", "Shown:", measures) if len(measures) > 1 else only
    said = means.filter(measure=next(iter(measures))).select("arm", "part", "mean")
    return show(
        chart.add_params(pick),
        name=name,
        caption=(
            f"{caption} One symbol a model ({argument.profile} profile); tick and bar: mean and {METHOD}; stars: "
            "published {cite:p}`smithline2026`."
        ),
        alt="Means: " + ", ".join(f"{arm} {part} {mean:.3g}" for arm, part, mean in said.iter_rows()) + ".",
        data=models,
    )


def _values(
    argument: Argument, task: str, arm: str, measure: str, setting: str, detail: str, moments: Sequence[str]
) -> dict[int, float]:
    for moment in moments or (PAPER_MOMENT[task],):
        part = Part("more", task, measure, (Side(arm, setting, moment), Side(arm)), detail=detail)
        try:
            return dict(argument.main.values(part.row(part.sides[0])).iter_rows())
        except Absent:
            continue
    return {}
