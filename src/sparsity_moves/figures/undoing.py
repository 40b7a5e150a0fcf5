"""Sparsity undone at the same total size: fewer and wider experts, or more of them open, until the layer is dense."""

from collections.abc import Iterator

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.conditions import CHECKPOINTS, every_task, tasks_of
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import LANES, REPLACED, checkpoint, marks, nothing_yet, selected
from sparsity_moves.figures.summary import summaries
from sparsity_moves.figures.theme import arm_label
from sparsity_moves.figures.words import TASK_NAMES
from sparsity_moves.studies.argument import Argument

FEWER = {1: "dense", 2: "moe_e2", 4: "moe", 8: "moe_e8", 16: "moe_e16"}
"""Experts, one open. One expert is the dense layer."""
OPEN = {1: "moe", 2: "moe_top2", 3: "moe_top3", 4: "moe_top4"}
"""Open experts, of four."""
WAYS = {"experts, one of them open": FEWER, "open experts, of four": OPEN}


ARMS = list(dict.fromkeys(name for way in WAYS.values() for name in way.values()))


def unmeasured(argument: Argument) -> str:
    """A sentence that names each task's points without full-scale runs; empty where all are there."""
    left = {
        name: [arm_label(arm) for arm in argument.missing(task, ARMS)] for task, name in TASK_NAMES.items()
    }
    said = " ".join(f"On {name}: {'; '.join(arms)}." for name, arms in left.items() if arms)
    return f"*Not yet run at this scale, and in the figure when they are: {said}*" if said else ""


def ways_back(argument: Argument) -> Figure | Text:
    """No-FFN accuracy on the two ways from sparse to dense, every seed of each task."""
    lanes = every_task(argument, lambda _: ARMS)
    parts = [each for lane, rows in lanes if len(rows) for each in _points(rows, lane)]
    if not parts:
        return nothing_yet("This comparison")
    models = pl.concat(parts)
    tasks = tasks_of(models)
    key = ["task", "way", "count", "lane", "moment"]
    means = pl.concat(
        summaries(models, key, name).with_columns(
            pl.lit(name).alias("measure"), pl.col("mean", "low", "high").round(2)
        )
        for name in REPLACED
    )
    # Two hues that differ in lightness too, and a dash: the lanes hold in grey and for the colour-blind.
    domain = [LANES[name] for name, _ in lanes]
    colour = alt.Color(
        "lane:N",
        scale=alt.Scale(domain=domain, range=["#1762b6", "#b07d00"][: len(domain)]),
        legend=alt.Legend(title=None, orient="top"),
    )
    dash = alt.StrokeDash("lane:N", scale=alt.Scale(domain=domain, range=[[1, 0], [5, 3]][: len(domain)]))
    tips = [
        alt.Tooltip("count:O", title="experts"),
        alt.Tooltip("lane:N", title="from"),
        alt.Tooltip("mean:Q", title="mean (%)"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]
    panels = []
    for place, (way, points) in enumerate(WAYS.items()):
        x = alt.X(
            "count:O",
            title=way.capitalize(),
            axis=alt.Axis(labelAngle=0),
            scale=alt.Scale(domain=list(points)),
        )
        y = alt.Y(
            "shown:Q",
            title="Accuracy without the FFN (%)" if place == 0 else None,
            scale=alt.Scale(domain=[0, 100]),
        )
        offset = alt.XOffset("lane:N", scale=alt.Scale(domain=domain))
        seeds = (
            alt.Chart(models.filter(way=way))
            .transform_filter("datum.task == task && datum.moment == checkpoint")
            .transform_calculate(shown="datum[measure]")
            .mark_point(filled=False, size=24, strokeWidth=1.2, opacity=0.6)
            .encode(
                x,
                y,
                offset,
                colour,
                tooltip=[
                    "arm:N",
                    "seed:O",
                    alt.Tooltip("shown:Q", title="value (%)"),
                    alt.Tooltip("spec_id:N", title="run"),
                ],
            )
        )
        average = alt.Chart(means.filter(way=way)).transform_filter(
            "datum.task == task && datum.moment == checkpoint && datum.measure == measure"
        )
        panels.append(
            alt.layer(
                seeds,
                average.mark_line(strokeWidth=2, tooltip=None).encode(
                    x, alt.Y("mean:Q"), offset, colour, dash
                ),
                average.mark_rule(strokeWidth=2.5).encode(
                    x, alt.Y("low:Q"), alt.Y2("high:Q"), offset, tooltip=tips
                ),
                average.mark_tick(thickness=3, size=16, color="currentColor").encode(
                    x, alt.Y("mean:Q"), offset, tooltip=tips
                ),
            ).properties(width=225, height=260)
        )
    said = means.filter(task=next(iter(tasks)), measure="no_ffn_accuracy", moment="paper")
    return show(
        alt.hconcat(*panels, spacing=20).add_params(
            selected("measure", "The FFN's output is", REPLACED),
            checkpoint(*dict(lanes).values(), moments=CHECKPOINTS),
            selected("task", "On", tasks),
        ),
        name="settle",
        caption=(
            "Two ways from sparse to dense at one total size. Left: fewer and wider experts, "
            "down to one, the dense layer. Right: more of four experts open. "
            + marks(dict(lanes)["main"], dict(lanes).get("own"))
        ),
        alt=f"Accuracy without the FFN on {tasks[said['task'][0]]} at the paper's checkpoint: "
        + ", ".join(
            f"{way} {count}: {mean:.0f} % ({lane})"
            for way, count, lane, mean in said.select("way", "count", "lane", "mean").iter_rows()
        )
        + ".",
        data=models,
    )


def _points(rows: pl.DataFrame, lane: str) -> Iterator[pl.DataFrame]:
    for way, points in WAYS.items():
        for count, name in points.items():
            yield rows.filter(arm=name).select(
                "task",
                pl.lit(way).alias("way"),
                pl.lit(count).alias("count"),
                pl.lit(arm_label(name)).alias("arm"),
                "seed",
                "moment",
                "spec_id",
                *((pl.col(measure) * 100).round(2) for measure in REPLACED),
                pl.lit(LANES[lane]).alias("lane"),
            )
