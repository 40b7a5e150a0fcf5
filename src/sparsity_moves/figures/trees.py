"""Trees beside the other FFNs: accuracy without the FFN by height, and how large each is."""

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.looks import sure
from sparsity_moves.figures.prose import Text, listed, table
from sparsity_moves.figures.strips import MOMENTS, checkpoint, marks, nothing_yet
from sparsity_moves.figures.summary import criterion, summaries
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes
from sparsity_moves.figures.told import Teller
from sparsity_moves.figures.words import TASK_NAMES
from sparsity_moves.names import TaskName
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.arms import TREES
from sparsity_moves.studies.statistics import compare
from sparsity_moves.studies.trees import BESIDE, HEIGHTS, height, label


def kind_of(arm: str) -> str:
    """The arm of trees without its height."""
    return arm.split("_height")[0]


def _forests(task: TaskName) -> list[str]:
    """Every forest that some profile has, kind by kind, the lowest first."""
    points = {(name, h) for own in HEIGHTS.values() for name, hs in own[task].items() for h in hs}
    return [label(name, h) for name, h in sorted(points, key=lambda each: (TREES.index(each[0]), each[1]))]


ARMS: dict[TaskName, tuple[str, ...]] = {task: (*BESIDE, *_forests(task)) for task in HEIGHTS["paper"]}
"""A row each, where there are runs: what trees are held against, then trees by height."""


def by_height(argument: Argument, task: TaskName = "add7") -> Figure | Text:
    """Accuracy without the FFN over the trees' height; dense, narrow and MoE as levels."""
    names = [name for name in ARMS[task] if name not in BESIDE]
    held = [name for name in BESIDE if name != "moe_frozen"]  # it lies on the MoE's line
    main, beside = argument.moments(task, names), argument.moments(task, held)
    if main.is_empty():
        return nothing_yet("The trees' heights")
    kinds = [kind for kind in TREES if kind in {kind_of(name) for name in main["arm"]}]
    rows = main.select(
        pl.col("arm").map_elements(lambda name: arm_label(kind_of(name)), return_dtype=pl.String),
        pl.col("arm").map_elements(height, return_dtype=pl.Int64).alias("height"),
        "seed",
        "moment",
        (100 * pl.col("no_ffn_accuracy")).round(2).alias("percent"),
    )
    means = summaries(rows, ["arm", "height", "moment"], "percent").with_columns(
        pl.col("mean", "low", "high").round(2)
    )
    levels = summaries(
        beside.select(
            pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
            "seed",
            "moment",
            (100 * pl.col("no_ffn_accuracy")).alias("percent"),
        ),
        ["arm", "moment"],
        "percent",
    ).with_columns(pl.col("mean", "low", "high").round(2))
    here = "datum.moment == checkpoint"
    x = alt.X("height:O", title="Height of the trees", axis=alt.Axis(labelAngle=0))
    y = alt.Y("mean:Q", title="Accuracy without the FFN (%)", scale=alt.Scale(domain=[0, 100]))
    kind = alt.XOffset("arm:N", sort=[arm_label(name) for name in kinds])
    legend = alt.Legend(title=None, orient="top")
    colour = alt.Color("arm:N", scale=arm_colours(kinds), legend=legend)
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        "height:O",
        alt.Tooltip("mean:Q", title="mean (%)"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]
    average = alt.Chart(means).transform_filter(here)
    lines = alt.Chart(levels).transform_filter(here)
    level_tips = [
        alt.Tooltip("arm:N", title="FFN"),
        "mean:Q",
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]
    chart = alt.layer(
        lines.mark_rule(strokeDash=[6, 4], opacity=0.6).encode(alt.Y("mean:Q"), tooltip=level_tips),
        lines.mark_text(align="right", dy=-5, fontSize=10, fontStyle="italic").encode(
            alt.Y("mean:Q"), x=alt.value(alt.ExprRef("width - 4")), text="arm:N"
        ),
        alt.Chart(rows)
        .transform_filter(here)
        .mark_point(filled=False, size=32, strokeWidth=1.3, opacity=0.75)
        .encode(
            x,
            alt.Y("percent:Q"),
            kind,
            colour,
            alt.Shape("arm:N", scale=arm_shapes(kinds), legend=legend),
            tooltip=[alt.Tooltip("arm:N", title="FFN"), "height:O", "seed:O", "percent:Q"],
        ),
        average.mark_rule(strokeWidth=2.5).encode(
            x, alt.Y("low:Q"), alt.Y2("high:Q"), kind, colour, tooltip=tips
        ),
        average.mark_tick(thickness=3, size=16).encode(x, y, kind, colour, tooltip=tips),
    ).properties(width=460, height=300)
    final = means.filter(moment="final")
    return show(
        chart.add_params(checkpoint(main, moments=MOMENTS)),
        name="tree-heights",
        caption=(
            "Addition with carry, accuracy without the FFN by the height of the trees. Dashed: what they are held "
            f"against. {marks(main, None)}"
        ),
        alt="Points over height. At the last step: "
        + ", ".join(
            f"{arm} height {h} {mean:.0f} %"
            for arm, h, mean in final.select("arm", "height", "mean").iter_rows()
        )
        + ".",
        data=rows,
    )


def sizes(argument: Argument, task: TaskName = "add7") -> Text:
    """Units and parameters, in total and met by one token."""
    rows = argument.moments(task, ARMS[task]).unique("arm", maintain_order=True)
    units = [
        (
            int(row["width"]),
            int(row["width"] // ((2 << row["tree_depth"]) - 1) * (row["tree_depth"] + 1))
            if row["tree_depth"]
            else int(row["width"] // row["experts"] * row["top_k"]),
        )
        for row in rows.iter_rows(named=True)
    ]
    return table(
        pl.DataFrame(
            {
                "FFN": [arm_label(arm) for arm in rows["arm"]],
                "units": [total for total, _ in units],
                "open for a token": [open_units for _, open_units in units],
                "parameters": rows["parameters"],
                "active": rows["active_parameters"],
            }
        ),
        name="tree-sizes",
        caption="Matched in total or in open units; parameters of the whole model, and those that one token meets.",
    )


def forests(tell: Teller, task: TaskName) -> list[str]:
    """Those that the main tables have at the last step."""
    return [arm for arm in ARMS[task] if kind_of(arm) in TREES and tell.values(task, arm, moment="final")]


def differences_table(tell: Teller, task: TaskName) -> Text:
    """Every forest's accuracy, seeds that learned, accuracy without the FFN, and how far that is over others'."""
    rows = [
        {
            "FFN": f"{arm_label(kind_of(arm))}, height {height(arm)}",
            "accuracy, learned": tell.mean(task, arm, "accuracy", "final")
            + "<br>{} of {}".format(*tell.learned(task, arm)),
            "without the FFN": tell.mean(task, arm, moment="final"),
            **{
                f"over {other}": tell.difference(task, arm, other, moment="final")
                .replace(" points (95\u00a0% CI ", "<br>(")  # in two lines, each unbroken
                .replace(" to ", "\u00a0to\u00a0")
                for other in ("dense", "narrow", "moe")
            },
        }
        for arm in forests(tell, task)
    ]
    return table(
        pl.DataFrame(rows).rename({"over moe": "over MoE"}),
        name=f"trees-{task.replace('_', '-')}",
        caption=f"At the last step. *Learned*: seeds with {criterion(task)}. Differences, in points, are of the same "
        "seeds, in brackets their 95 % intervals.",
    )


def course(tell: Teller, task: TaskName) -> list[str]:
    """Whether higher trees leave more to attention, and which more than a dense layer or an MoE; what is missing."""
    there, said = forests(tell, task), []
    if not there:
        return [f"*No tree has been run at this scale on {TASK_NAMES[task]} yet.*"]
    for kind in (kind for kind in TREES if kind in {kind_of(arm) for arm in there}):
        own = {height(arm): tell.values(task, arm, moment="final") for arm in there if kind_of(arm) == kind}
        learned = {h: tell.learned(task, label(kind, h)) for h in own}
        few = [h for h, (those, of) in learned.items() if 2 * those < of]
        parts, able = [], [h for h in own if h not in few]  # what did not learn has nothing to keep
        low, high = (min(able), max(able)) if able else (0, 0)
        if low < high:
            words = {
                1: "**the higher, the more** is right without the FFN",
                -1: "the higher, the *less* is right without the FFN",
                0: "height makes no clear difference",
            }[_sign(own[high], own[low])]
            grown = tell.difference(task, label(kind, high), label(kind, low), moment="final")
            parts.append(f"{words} ({grown} from height {low} to {high})")
        for other in ("dense", "moe") if able else ():
            held = tell.values(task, other, moment="final")
            signs = {h: _sign(own[h], held) for h in able}
            sides = [
                f"{words} at {'every height' if len(at) == len(own) > 1 else 'height ' + listed(at)}"
                for side, words in ((1, "more"), (0, "no clear difference"), (-1, "less"))
                if (at := [str(h) for h, sign in signs.items() if sign == side])
            ]
            parts.append(f"against {arm_label(other)}, {', '.join(sides)}")
        if few:
            heights = listed([str(h) for h in few])
            parts.append(
                f"at height {heights} fewer than half of the seeds learn the task, so nothing is said of it"
            )
        said.append(f"- {arm_label(kind)}: {'; '.join(parts)}.")
    return ["\n".join(said), tell.missing(task, [arm for arm in ARMS[task] if kind_of(arm) in TREES])]


def _sign(one: dict[int, float], other: dict[int, float]) -> int:
    """Whether one is surely above (+1) or below (-1) the other, seed by seed; 0 too where no seed has both."""
    pairs = [value - other[seed] for seed, value in one.items() if seed in other]
    return sure(compare(pairs)) if pairs else 0
