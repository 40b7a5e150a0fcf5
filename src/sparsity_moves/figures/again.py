"""Trained twice: what all arms cost from nothing, and whether they come out as they did before."""

from statistics import median
from typing import Any

import altair as alt
import polars as pl

from sparsity_moves.figures.benchmarks import committed
from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.claim_words import MEASURES, plain, signed
from sparsity_moves.figures.prose import listed
from sparsity_moves.figures.strips import selected
from sparsity_moves.figures.theme import arm_label
from sparsity_moves.figures.words import MOMENT_NAMES, SHORT_NAMES
from sparsity_moves.studies.statistics import LEVEL

SHOWN = {name: MEASURES[name] for name in ("no_ffn_accuracy", "no_attention_accuracy", "accuracy")}


def benchmark() -> dict[str, Any] | None:
    """The committed table of `benchmarks/from_nothing.py`; None where it was not run."""
    return committed("from_nothing.json").get("from_nothing")


def sweeps() -> str | None:
    """What the sweeps cost beside the arms, in a sentence; None where that was not measured."""
    found = committed("from_nothing-sweeps.json").get("from_nothing-sweeps")
    return spent(found, f"The sweeps beside them: {found['runs']} models") if found else None


def spent(found: dict[str, Any], what: str) -> str:
    """A sentence on how long it took, on what."""
    calls = len(found["calls"])
    together = sorted({call["devices"] for call in found["calls"] if call["devices"] > 1})
    how = [f", {devices} at once" for devices in together] + [f", in {calls} calls"] * (calls > 1)
    time = (
        f"{what} took {plain(found['device_seconds'] / 60, 1)} minutes of {found['device']}{''.join(how)} "
        f"(`{found['command']}`)."
    )
    missing = [f"{found['missing']} models"] if found["missing"] else []
    missing += [
        f"{study} ({listed([SHORT_NAMES[t] for t in tasks])})" for study, tasks in found["left"].items()
    ]
    return time + (f" **Still missing: {listed(missing)}.**" if missing else "")


def rows(found: dict[str, Any]) -> pl.DataFrame:
    """One row a task, arm and measure, in per cent; intervals of differences between the two trainings."""
    percent = [pl.col(name) * 100 for name in ("first", "second", "difference", "low", "high")]
    return (
        pl.DataFrame(found["again"], infer_schema_length=None)
        .with_columns(*percent)
        .with_columns(
            arm=pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
            task=pl.col("task").replace_strict(SHORT_NAMES),
            differs=(pl.col("p") < LEVEL).fill_null(False),
        )
    )


def told(found: dict[str, Any]) -> list[str]:
    """How long it took, and how many means differ: a paragraph each."""
    arms = f"{len(found['arms'])} arms of each task"
    of = f"of {arms}" if found["missing"] or found["left"] else f"{arms}, all their seeds"
    what = f"**From nothing.** {found['runs']} models ({of})"
    time = f"{spent(found, what)} Training, looks, measures and storing count. One time: no interval."
    if not found["again"]:
        return [time]
    every = rows(found)
    other = every.filter("differs")
    furthest = [
        max(-row["low"], row["high"]) for row in every.iter_rows(named=True) if row["low"] is not None
    ]
    same = sum(row["same_to_the_bit"] == row["seeds"] for row in found["again"])
    again = (
        "**Trained twice.** These are not the models of the other pages, which other kernels made on other days: the "
        f"same seeds and batches, rounded otherwise. Of {len(every)} means, {len(other) or 'none'} "
        f"differ{'s' * (len(other) == 1)} (paired t-tests over seeds, Benjamini–Hochberg, {100 * LEVEL:.0f}\u00a0%); "
        f"in {same} every model has the very number it had."
    )
    if furthest:
        again += (
            " By how much means might differ, at the far end of their 95\u00a0% intervals: half of them by at most "
            f"{plain(median(furthest), 1)} points, the least certain by {plain(max(furthest), 1)}."
        )
    named = [
        f"{row['task']}, {row['arm']}, {MEASURES[row['column']]}: {signed(row['low'], 1)} to {signed(row['high'], 1)}"
        for row in other.iter_rows(named=True)
    ]
    return [time, again + (f" These differ: {'; '.join(named)} points." if named else "")]


def differences(found: dict[str, Any]) -> Figure:
    """Second training minus first, a row an arm, a panel a task."""
    shown = rows(found)
    tasks = shown["task"].unique(maintain_order=True).to_list()
    arms = shown["arm"].unique(maintain_order=True).to_list()
    base = alt.Chart(shown).transform_filter("datum.column == measure_chosen")
    y = alt.Y("arm:N", title=None, sort=arms, axis=alt.Axis(labelLimit=220, grid=True))
    x = alt.X("low:Q", title="Second minus first (points)")
    colour = alt.condition("datum.differs", alt.value("#b3261e"), alt.value("#1762b6"))
    marks = alt.layer(
        base.transform_calculate(zero="0").mark_rule(strokeDash=[4, 4], opacity=0.6).encode(alt.X("zero:Q")),
        base.mark_rule(strokeWidth=2).encode(x, y, alt.X2("high:Q"), color=colour),
        base.mark_point(size=50).encode(
            alt.X("difference:Q"),
            y,
            color=colour,
            tooltip=[
                "task:N",
                "arm:N",
                alt.Tooltip("first:Q", title="first (%)", format=".2f"),
                alt.Tooltip("second:Q", title="second (%)", format=".2f"),
                alt.Tooltip("low:Q", title="from (points)", format=".2f"),
                alt.Tooltip("high:Q", title="to", format=".2f"),
                "seeds:Q",
                alt.Tooltip("same_to_the_bit:Q", title="models with the very same number"),
                alt.Tooltip("p:Q", title="p, corrected", format=".3f"),
            ],
        ),
    ).properties(width=190, height=17 * len(arms))
    chart = marks.facet(facet=alt.Facet("task:N", title=None, sort=tasks), columns=3).resolve_scale(
        x="independent"
    )
    opened, words = next(iter(SHOWN.items()))
    first = shown.filter(column=opened)
    moments = shown.unique("column").select("column", "moment").iter_rows()
    at = listed([f"{MEASURES[column]} at {MOMENT_NAMES[moment]}" for column, moment in sorted(moments)])
    return show(
        chart.add_params(selected("measure_chosen", "Measure:", SHOWN)),
        name="again",
        caption=(
            "Arms trained a second time: the difference of each mean over seeds, paired, with the 95\u00a0% "
            f"percentile bootstrap interval; {at}. Red: differs after correction."
        ),
        alt="Intervals of differences, a row an arm, a panel a task. "
        f"Of {words}, {int(first['differs'].sum())} of {len(first)} differ; the "
        f"largest difference is {plain(float(first['difference'].abs().max() or 0.0), 1)} points.",  # type: ignore[arg-type]
        data=shown,
    )
