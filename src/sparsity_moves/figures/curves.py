"""The shift over training: accuracy without a component at every look, and the exact sizes of every layer."""

import json

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.strips import runs_shown
from sparsity_moves.figures.theme import arm_colours, arm_label
from sparsity_moves.figures.words import TASK_NAMES, profile, seeds, sentence, setting

LOOKS = 30
"""Looks drawn of a run; all are in the download."""
LINES = 8
"""Seeds drawn of an arm; the mean is over all of them."""

SHOWN = {
    "no_ffn_accuracy": "without the FFN",
    "no_attention_accuracy": "without attention",
    "accuracy": "intact",
}


def trajectories(
    curves: pl.DataFrame, moments: pl.DataFrame, full: tuple[pl.DataFrame, pl.DataFrame] | None = None
) -> Figure:
    """Accuracy against training step, a thin line a seed, a thick one for the mean of each arm.

    Args:
        curves, moments: of a study's runs.
        full: the same two of the runs at full scale, where a selection box is to show those instead.
    """
    arms = curves["arm"].unique(maintain_order=True).to_list()
    lanes = {"here": (curves, moments), **({"full": full} if full else {})}
    rows = pl.concat(_drawn(table, arms, lane) for lane, (table, _) in lanes.items())
    controls = [
        alt.param(
            name="shown",
            value="no_ffn_accuracy",
            bind=alt.binding_select(options=list(SHOWN), labels=list(SHOWN.values()), name="Accuracy "),
        ),
        alt.param(
            name="standing_out",
            value="all",
            bind=alt.binding_select(options=["all", *map(arm_label, arms)], name="Stand out "),
        ),
    ]
    controls.append(runs_shown(full is not None))
    panels = [
        _panel(
            rows.filter(task=task),
            {lane: table.filter(task=task) for lane, (_, table) in lanes.items()},
            arms,
        )
        for task in TASK_NAMES
    ]
    most = max(rows.group_by("runs", "task", "arm").agg(pl.col("seed").n_unique())["seed"])
    drawn = f"the first {LINES} seeds of each" if most > LINES else "one a seed"
    return show(
        alt.vconcat(*panels, spacing=14).add_params(*controls),
        name="trajectories",
        caption=(
            f"Accuracy over training, evaluated without the component. Thin lines: {drawn}; thick lines: mean "
            f"over all seeds ({seeds(moments)}, {profile(moments)}), whether they learned the task or not."
            + (f" At full scale: {seeds(full[1])}." if full else "")
        ),
        alt="Line charts for three tasks: accuracy without the FFN at every look during training, one colour "
        "for each feed-forward layer. " + _ends(curves),
        data=rows if full else curves,
    )


def _drawn(curves: pl.DataFrame, arms: list[str], lane: str) -> pl.DataFrame:
    """Some of the looks of every run, in percent."""
    place = pl.col("step").rank("dense").over("task") - 1
    every = pl.max_horizontal(1, pl.col("step").n_unique().over("task") // LOOKS)
    return curves.filter(pl.col("arm").is_in(arms), place % every == 0).select(
        pl.lit(lane).alias("runs"),
        "task",
        pl.col("arm").replace_strict({arm: arm_label(arm) for arm in arms}),
        pl.col("seed").cast(pl.Int64),
        pl.col("step").cast(pl.Int64),
        *((pl.col(name).cast(pl.Float64) * 100).round(1) for name in SHOWN),
    )


def _panel(rows: pl.DataFrame, moments: dict[str, pl.DataFrame], arms: list[str]) -> alt.LayerChart:
    first = pl.concat(
        table.select("seed")
        .unique(maintain_order=True)
        .head(LINES)
        .select(pl.lit(lane).alias("runs"), pl.col("seed").cast(pl.Int64))
        for lane, table in moments.items()
    )
    about = {
        lane: [sentence(TASK_NAMES[table["task"][0]]), sentence(setting(table))]
        for lane, table in moments.items()
        if len(table)
    }
    means = rows.group_by("runs", "arm", "step", maintain_order=True).agg(
        *(pl.col(name).mean().round(1) for name in SHOWN), pl.col("seed").n_unique().alias("seeds")
    )
    colour = alt.Color(
        "arm:N",
        scale=arm_colours(arms),
        legend=alt.Legend(title=None, orient="bottom", columns=3, symbolOpacity=1, symbolStrokeWidth=4),
    )
    faint = alt.condition(
        "standing_out == 'all' || datum.arm == standing_out", alt.value(0.3), alt.value(0.03)
    )
    strong = alt.condition("standing_out == 'all' || datum.arm == standing_out", alt.value(1), alt.value(0.1))
    x = alt.X("step:Q", title="Training step", axis=alt.Axis(tickCount=6))
    y = alt.Y("shown_accuracy:Q", title="Accuracy (%)", scale=alt.Scale(domain=[0, 100]))
    here = "datum.runs == runs"
    lines = rows.join(first, on=["runs", "seed"], maintain_order="left").drop("task")
    thin = alt.Chart(lines).transform_filter(here)
    thick = alt.Chart(means).transform_filter(here)
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        "step:Q",
        alt.Tooltip("shown_accuracy:Q", title="mean (%)", format=".1f"),
        "seeds:Q",
    ]
    panel: alt.LayerChart = (
        alt.layer(
            thin.transform_calculate(shown_accuracy="datum[shown]")
            .mark_line(strokeWidth=1, tooltip=None)
            .encode(x, y, colour, detail="seed:N", opacity=faint),
            thick.transform_calculate(shown_accuracy="datum[shown]")
            .mark_line(strokeWidth=3)
            .encode(x, y, colour, opacity=strong, tooltip=tips),
        )
        .resolve_scale(color="shared")
        .properties(
            title={"text": {"expr": f"{json.dumps(about)}[runs]"}},
            width=500,
            height=150,
        )
    )
    return panel


def _ends(curves: pl.DataFrame) -> str:
    ends = (
        curves.filter(pl.col("step") == pl.col("step").max().over("task"))
        .group_by("task", "arm", maintain_order=True)
        .agg(pl.col("no_ffn_accuracy").mean())
    )
    return "At the end: " + " ".join(
        f"{sentence(name)}: "
        + ", ".join(
            f"{arm_label(arm)} {100 * share:.0f} %" for _, arm, share in ends.filter(task=task).iter_rows()
        )
        + "."
        for task, name in TASK_NAMES.items()
    )
