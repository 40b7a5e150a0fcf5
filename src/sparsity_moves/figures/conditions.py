"""Does it hold elsewhere? The shift, MoE minus dense, with one setting changed at a time."""

from collections.abc import Callable, Iterator
from functools import reduce

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.claim_words import signed
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import LANES, REPLACED, checkpoint, marks, nothing_yet, selected
from sparsity_moves.figures.summary import differences, summaries
from sparsity_moves.figures.theme import ARMS, arm_label
from sparsity_moves.figures.words import TASK_NAMES
from sparsity_moves.studies import arm, sweeps
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.published import PAPER_MOMENT

VARIED = ("norm", "activation", "model_width", "depth", "beta2")
"""Families of `sweeps` that vary both the dense layer and the MoE."""
AS_IS = "as in the paper"
CHECKPOINTS = {"paper": "the paper's checkpoint", "final": "the last step"}


def conditions(task: str = "add7") -> Iterator[tuple[str, str, str]]:
    """Each condition in words, with the names of its MoE and its dense arm; the paper's own first.

    A task's own activation stands among the activations again, since another task has another.
    """
    yield AS_IS, "moe", "dense"
    known = sweeps.known("paper", task)
    for family in VARIED:
        for suffix, settings in sweeps.FAMILIES[family].points.items():
            names = [
                known.get(arm(name, "paper", task, 0, **settings), f"{name}_{suffix}")  # type: ignore[arg-type]
                for name in ("moe", "dense")
            ]
            if names[0] != "moe" or family == "activation":  # at its own setting it is the first condition
                yield worded(suffix), names[0], names[1]


def worded(suffix: str) -> str:
    """A sweep's point, in words."""
    return arm_label(f"moe_{suffix}").removeprefix("MoE, ")


def unmeasured(argument: Argument) -> str:
    """A sentence that names each task's conditions without full-scale runs; empty where all are there."""
    left = {}
    for task, name in TASK_NAMES.items():
        every = list(conditions(task))
        words = [words for words, *names in every if argument.missing(task, names)]
        if words:
            left[name] = "all" if len(words) == len(every) else "; ".join(words)
    said = " ".join(f"On {name}: {words}." for name, words in left.items())
    return f"*Not yet run at this scale, and in the figure when they are: {said}*" if said else ""


def generality(argument: Argument) -> Figure | Text:
    """MoE minus dense, paired by seed, on each task under every condition that the tables have."""
    lanes = every_task(argument, _arms)
    parts = [each for lane, rows in lanes for task in TASK_NAMES for each in _shifts(rows, lane, task)]
    if not parts:
        return nothing_yet("This comparison")
    rows = pl.concat(parts)
    key = ["task", "condition", "lane", "moment"]
    means = pl.concat(
        summaries(rows, key, name).with_columns(
            pl.lit(name).alias("measure"), pl.col("mean", "low", "high").round(2)
        )
        for name in REPLACED
    )
    there = set(rows["condition"])
    named = [worded(suffix) for family in VARIED for suffix in sweeps.FAMILIES[family].points]
    order = [words for words in (AS_IS, *named) if words in there]
    tasks = tasks_of(rows)
    y = alt.Y("condition:N", sort=order, title=None, scale=alt.Scale(paddingInner=0.3))
    lane = alt.YOffset("lane:N", sort=None, scale=alt.Scale(domain=[LANES[name] for name, _ in lanes]))
    here = "datum.task == task && datum.moment == checkpoint"
    average = alt.Chart(means).transform_filter(f"{here} && datum.measure == measure")
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
        .transform_calculate(points="datum[measure]")
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
    said = means.filter(task=next(iter(tasks)), moment="paper", measure="no_ffn_accuracy")
    return show(
        chart.add_params(
            selected("measure", "The FFN's output is", REPLACED),
            checkpoint(*dict(lanes).values(), moments=CHECKPOINTS),
            selected("task", "On", tasks),
        ),
        name="generality",
        caption=(
            "The shift with one setting changed, MoE minus dense of the same setting and seed; a task's own "
            "activation is the first row again. "
            + marks(dict(lanes)["main"], dict(lanes).get("own")).replace(
                "One symbol a model", "One symbol a pair"
            )
        ),
        alt=f"The shift on {tasks[said['task'][0]]} in points at the paper's checkpoint: "
        + ", ".join(
            f"{words} {signed(mean, 1)} ({lane})"
            for words, lane, mean in said.select("condition", "lane", "mean").iter_rows()
        )
        + ".",
        data=rows,
    )


def tasks_of(rows: pl.DataFrame) -> dict[str, str]:
    """The tasks that have rows at the paper's checkpoint, which is the first to be shown, in words."""
    there = set(rows.filter(moment="paper")["task"])
    return {task: words for task, words in TASK_NAMES.items() if task in there}


def _arms(task: str) -> list[str]:
    return list(dict.fromkeys(name for _, *names in conditions(task) for name in names))


def every_task(argument: Argument, arms: Callable[[str], list[str]]) -> list[tuple[str, pl.DataFrame]]:
    """Each lane that has runs of these arms of any task, with their rows.

    They are at the paper's checkpoint of their task, called `paper`, and at the last.
    """
    found = []
    for lane in ("main", "own"):
        rows = [
            rows.filter(pl.col("moment").is_in([PAPER_MOMENT[task], "final"])).with_columns(
                pl.col("moment").replace(PAPER_MOMENT[task], "paper")
            )
            for task in TASK_NAMES
            if (rows := argument.lane(lane, task, arms(task))) is not None
        ]
        if rows:
            found.append((lane, pl.concat(rows, how="diagonal_relaxed")))
    return found


def _shifts(rows: pl.DataFrame, lane: str, task: str) -> Iterator[pl.DataFrame]:
    """Points between MoE and dense under each condition of a task, one row a pair and checkpoint."""
    rows = rows.filter(task=task)
    there = set(rows["arm"])
    for words, moe, dense in conditions(task):
        if {moe, dense} <= there:
            both = rows.filter(pl.col("arm").is_in([moe, dense]))
            key = ["seed", "moment"]
            points = [
                differences(both, ["moment"], measure, against=dense).select(
                    *key, (pl.col("difference") * 100).round(2).alias(measure)
                )
                for measure in REPLACED
            ]
            paired = reduce(lambda one, other: one.join(other, on=key, maintain_order="left"), points)
            yield paired.with_columns(task=pl.lit(task), condition=pl.lit(words), lane=pl.lit(LANES[lane]))
