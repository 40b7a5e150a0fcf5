"""Every model as a symbol, a row an arm: full-scale runs, the reader's own below, the published value beside."""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from sparsity_moves.figures.ablation import STAR
from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import Text, listed, say
from sparsity_moves.figures.summary import METHOD, summaries
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes
from sparsity_moves.figures.words import MOMENT_NAMES, profile, seeds, task_of
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.published import best, published

LANES = {"main": "full scale", "own": "this computer", "paper": "published"}
REPLACED = {
    "no_ffn_accuracy": "set to zero",
    "mean_ffn_accuracy": "its mean",
    "resample_ffn_accuracy": "another input's",
}
MOMENTS = {"first_best": "the paper's checkpoint", "final": "the last step"}


def selected(name: str, label: str, options: Mapping[str, str]) -> alt.Parameter:
    """A selection box of a chart; `options` from value to words."""
    bind = alt.binding_select(options=list(options), labels=list(options.values()), name=f"{label} ")
    return alt.param(name=name, value=next(iter(options)), bind=bind)


def runs_shown(full: bool) -> alt.Parameter:
    """Whether a chart shows this build's runs or those at full scale; a selection box where there are both."""
    if not full:
        return alt.param(name="runs", value="here")
    return selected("runs", "Runs:", {"full": "full scale", "here": "this build"})


def checkpoint(*tables: pl.DataFrame, moments: Mapping[str, str] = MOMENTS) -> alt.Parameter:
    """Which checkpoint is looked at; a selection box, unless every model's best is its last."""
    looked = pl.concat(
        rows.select("spec_id", "moment", pl.col("step").cast(pl.Int64)) for rows in tables if len(rows)
    )
    steps = (
        looked.filter(pl.col("moment").is_in(list(moments)))
        .group_by("spec_id")
        .agg(pl.col("step").n_unique())
    )
    if len(moments) == 1 or steps["step"].max() == 1:
        return alt.param(name="checkpoint", value=next(iter(moments)))
    return selected("checkpoint", "At", moments)


def nothing_yet(what: str) -> Text:
    """In place of a figure whose runs are not stored."""
    return say(f"*{what} has no stored runs yet; the figure appears with them.*")


def strip(
    argument: Argument,
    arms: Sequence[str],
    *,
    name: str,
    caption: str,
    task: str = "add7",
    measures: Mapping[str, str] = REPLACED,
    choice: str = "The FFN's output is",
    title: str = "Accuracy without the FFN (%)",
    moments: Mapping[str, str] = MOMENTS,
    chance: bool = True,
    scale: float = 100,
) -> Figure | Text:
    """One value a model, with means and intervals; controls for the measure and the checkpoint.

    Args:
        argument: the tables.
        arms: a row each, in this order; those without runs are left out.
        name, caption: of the figure; the caption goes on with what the marks are.
        task: of the runs.
        measures: the columns to choose from, in words.
        choice: what the choice is called.
        title: of the axis.
        moments: the checkpoints to choose from.
        chance: whether strategies that compute nothing are drawn.
        scale: from the column's unit to the axis's.
    """
    main, own = argument.moments(task, arms), argument.beside(task, arms)
    every = [("main", main), *([("own", own)] if own is not None else [])]
    there = [arm for arm in arms if any(arm in set(rows["arm"]) for _, rows in every)]
    if not there:
        return nothing_yet("This comparison")
    columns = list(measures)
    models = pl.concat(
        [_models(rows, lane, columns, scale) for lane, rows in every if len(rows)], how="diagonal"
    )
    means = _means(models, columns)
    beside = _published(task, there, columns)
    lanes = [LANES[lane] for lane in ("main", "own", "paper") if lane != "own" or own is not None]
    labels = [arm_label(arm) for arm in there]
    y = alt.Y(
        "arm:N",
        sort=labels,
        title=None,
        scale=alt.Scale(domain=labels, paddingInner=0.25),
        axis=alt.Axis(labelLimit=260),
    )
    lane = alt.YOffset("lane:N", sort=None, scale=alt.Scale(domain=lanes))
    domain = [0, 100] if scale == 100 else [0, 1]
    x = alt.X("shown:Q", title=title, scale=alt.Scale(domain=domain))
    colour = alt.Color("arm:N", scale=arm_colours(there), legend=None)
    here = "datum.measure == measure && datum.moment == checkpoint"
    tips = [alt.Tooltip("arm:N", title="FFN"), "seed:O", alt.Tooltip("lane:N", title="from"), "step:Q"]
    symbols = (
        alt.Chart(models)
        .transform_filter("datum.moment == checkpoint")
        .transform_calculate(shown="datum[measure]")
        .mark_point(filled=False, size=32, strokeWidth=1.3, opacity=0.75)
        .encode(
            x,
            y,
            lane,
            colour,
            shape=alt.Shape("arm:N", scale=arm_shapes(there), legend=None),
            tooltip=[*tips, alt.Tooltip("shown:Q", title="value"), alt.Tooltip("spec_id:N", title="run")],
        )
    )
    average = alt.Chart(means).transform_filter(here)
    mean_tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("lane:N", title="from"),
        alt.Tooltip("mean:Q"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]
    layers: list[alt.Chart] = [
        symbols,
        average.mark_rule(strokeWidth=2.5).encode(
            alt.X("low:Q"), alt.X2("high:Q"), y, lane, tooltip=mean_tips
        ),
        average.mark_tick(thickness=3, size=14, color="currentColor").encode(
            alt.X("mean:Q"), y, lane, tooltip=mean_tips
        ),
    ]
    if len(beside):
        layers += _stars(beside, y, lane, colour)
    if chance:
        layers += _chance(pl.concat([rows for _, rows in every], how="diagonal_relaxed"))
    controls = [selected("measure", choice, measures)] if len(measures) > 1 else []
    controls += [alt.param(name="measure", value=columns[0])] if len(measures) == 1 else []
    controls.append(checkpoint(models, moments=moments))
    chart = (
        alt.layer(*layers)
        .resolve_scale(color="independent", shape="independent")
        .properties(width=480, height=alt.Step(15, **{"for": "offset"}))
        .add_params(*controls)
    )
    return show(
        chart,
        name=name,
        caption=f"{caption} {marks(main, own)}{_lanes(own is not None, len(beside) > 0)}",
        alt=f"Strip plot, a row an arm. {_in_words(means, columns[0], next(iter(moments)))}",
        data=models.drop_nulls("arm"),
    )


def marks(main: pl.DataFrame, own: pl.DataFrame | None) -> str:
    """What the marks of a figure are: whose runs, how many, which interval."""
    said = (
        f"One symbol a model ({seeds(main)}, {profile(main)}); tick and bar: mean and {METHOD}."
        if len(main)
        else ""
    )
    if own is not None:
        said += " *This computer*: shorter runs, trained where these pages were built "
        said += f"({seeds(own)}, {profile(own)})."
    return said.strip()


def _lanes(own: bool, beside: bool) -> str:
    """Which of a row's lanes is whose, from the top."""
    lanes = ["full scale"] + ["*this computer*"] * own
    lanes += ["published (star; dotted: ± its standard deviation)"] * beside
    return f" In each row from the top: {listed(lanes)}." if lanes[1:] else ""


def _models(rows: pl.DataFrame, lane: str, columns: Sequence[str], scale: float) -> pl.DataFrame:
    return rows.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        "seed",
        "moment",
        "step",
        "spec_id",
        *((pl.col(name) * scale).round(2 if scale == 100 else 4) for name in columns),
        pl.lit(LANES[lane]).alias("lane"),
    )


def _means(models: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    long = models.unpivot(
        columns, index=["arm", "seed", "lane", "moment"], variable_name="measure"
    ).drop_nulls()
    found = summaries(long, ["arm", "lane", "moment", "measure"], "value")
    return found.with_columns(pl.col("mean", "sd", "low", "high").round(4))


def _published(task: str, arms: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
    rows = best(published()).filter(
        pl.col("arm").is_in(list(arms)),
        pl.col("measure").is_in(list(columns)),
        task=task,
        setting="",
        detail="",
    )
    return rows.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        "measure",
        "moment",
        "value",
        "sd",
        "source_text",
        pl.lit(LANES["paper"]).alias("lane"),
    )


def _stars(beside: pl.DataFrame, y: alt.Y, lane: alt.YOffset, colour: alt.Color) -> list[alt.Chart]:
    shown = (
        alt.Chart(beside)
        .transform_filter("datum.measure == measure && datum.moment == checkpoint")
        .transform_calculate(low="datum.value - datum.sd", high="datum.value + datum.sd")
    )
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("value:Q", title="published"),
        alt.Tooltip("sd:Q", title="standard deviation"),
        alt.Tooltip("source_text:N", title="source"),
    ]
    rule = shown.transform_filter("datum.sd > 0").mark_rule(strokeWidth=1, strokeDash=[2, 2])
    return [
        rule.encode(alt.X("low:Q"), alt.X2("high:Q"), y, lane),
        shown.mark_point(size=200, **STAR).encode(alt.X("value:Q"), y, lane, colour, tooltip=tips),
    ]


def _chance(rows: pl.DataFrame) -> list[alt.Chart]:
    lines = pl.DataFrame(
        [{"value": round(100 * share, 2), "line": name} for name, share in task_of(rows).chance().items()]
    )
    base = alt.Chart(lines).encode(alt.X("value:Q"))
    tips = [alt.Tooltip("line:N", title="strategy"), alt.Tooltip("value:Q", title="accuracy (%)")]
    names = [
        base.transform_filter(alt.datum.line == name)
        .mark_text(align="left", dx=4, dy=-7 - 12 * place, fontSize=11, fontStyle="italic")
        .encode(y=alt.value(0), text="line:N")
        for place, name in enumerate(lines["line"])
    ]
    return [base.mark_rule(strokeDash=[6, 4], opacity=0.6).encode(tooltip=tips), *names]


def _in_words(means: pl.DataFrame, measure: str, moment: str) -> str:
    rows = means.filter(measure=measure, moment=moment).unique(("arm",), keep="first", maintain_order=True)
    values = ", ".join(f"{arm} {mean:g}" for arm, mean in rows.select("arm", "mean").iter_rows())
    return f"Means at {MOMENT_NAMES[moment]}: {values}."
