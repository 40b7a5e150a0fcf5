"""The first result: what is left of every model when one component is taken away."""

from typing import Any

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import percent
from sparsity_moves.figures.summary import METHOD, summaries, with_convergence
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes
from sparsity_moves.figures.words import (
    TASK_NAMES,
    profile,
    seeds,
    sentence,
    setting_beside_paper,
    task_of,
)
from sparsity_moves.studies.published import PAPER_MOMENT, best, published

MEASURES = [
    f"{how}_{component}_accuracy" for component in ("ffn", "attention") for how in ("no", "mean", "resample")
]
COLUMNS = (("mean", "percent"), ("low", "low"), ("high", "high"))
LANES = {"here": "this build", "full": "full scale", "paper": "published"}


def component_ablation(moments: pl.DataFrame, full: pl.DataFrame | None = None) -> Figure:
    """Accuracy without a component, every seed, beside the published values (and our full-scale runs).

    Controls: which component, how it is taken away, at which checkpoint, over which seeds.

    Args:
        moments: `runs.moments` of the redistribution study.
        full: rows of the same study at the paper's scale, where there are any.
    """
    rows = with_convergence(moments)
    arms = rows["arm"].unique(maintain_order=True).to_list()
    lanes = [*(["full"] if full is not None else []), "here", "paper"]  # in the order of all strips
    means = _means(rows, "here")
    if full is not None:
        means = pl.concat([means, _means(with_convergence(full), "full")])
    beside = paper_values(arms)
    panels = [
        _panel(
            task,
            rows.filter(task=task),
            means.filter(task=task),
            beside.filter(task=task),
            arms,
            lanes,
            full=None if full is None else full.filter(task=task),
            last=place == len(TASK_NAMES) - 1,
        )
        for place, task in enumerate(TASK_NAMES)
    ]
    chart = alt.vconcat(*panels, spacing=18).add_params(*_controls())
    seeds_said = seeds(rows)
    above = (
        f"Thick diamonds, above: means of our full-scale runs ({seeds(full)}). " if full is not None else ""
    )
    return show(
        chart,
        name="component-ablation",
        caption=(
            f"Per-token accuracy when one component is taken away. {above}Small symbols: one model each "
            f"({seeds_said}, {profile(rows)}), hollow where the model has not learned its task. Tick and bar: mean "
            f"and {METHOD}. Stars: values published by {{cite:t}}`smithline2026` with their standard "
            f"deviation over 5 seeds where given, shown for the checkpoint and the zeroing they are for. Dashed "
            f"lines: answers that need no computation (see {{numref}}`tab-chance`)"
            + (
                "; dotted: the same for the full-scale runs and the published values, where their task is larger."
                if full is not None
                else "."
            )
        ),
        alt=(
            "Strip plots for three tasks. Each row is one feed-forward layer; each symbol one model's accuracy "
            "without its FFN. " + _in_words(means)
        ),
        data=rows.select(
            "task", "arm", "seed", "moment", "step", "converged", "accuracy", *MEASURES, "spec_id"
        ),
    )


def paper_values(arms: list[str]) -> pl.DataFrame:
    """The published ablations of these arms: one row a task, arm and component."""
    rows = best(published()).filter(
        pl.col("arm").is_in(arms),
        pl.col("measure").is_in(["no_ffn_accuracy", "no_attention_accuracy"]),
        setting="",
        detail="",
    )
    return rows.with_columns(
        pl.col("measure").str.replace("no_", "").str.replace("_accuracy", "").alias("component")
    )


def _means(rows: pl.DataFrame, lane: str) -> pl.DataFrame:
    """Means and intervals of every measure, over all seeds and over those that learned their task."""
    key = ["task", "arm", "moment"]
    long = rows.unpivot(MEASURES, index=[*key, "seed", "converged"], variable_name="measure")
    parts = [
        summaries(chosen, [*key, "measure"], "value").with_columns(pl.lit(over).alias("over"))
        for over, chosen in (("all", long), ("learned", long.filter("converged")))
        if len(chosen)
    ]
    return pl.concat(parts).with_columns(pl.lit(LANES[lane]).alias("lane"))


def _controls() -> list[alt.Parameter]:
    def select(name: str, label: str, options: dict[str, str]) -> alt.Parameter:
        bind = alt.binding_select(options=list(options), labels=list(options.values()), name=label)
        return alt.param(name=name, value=next(iter(options)), bind=bind)

    return [
        select("component", "Without ", {"ffn": "the FFN", "attention": "attention"}),
        select(
            "how", "It is ", {"no": "set to zero", "mean": "its mean", "resample": "taken from another input"}
        ),
        select(
            "checkpoint",
            "At ",
            {"paper": "the paper's checkpoint", "first_best": "first best", "final": "last step"},
        ),
        select("over", "Mean over ", {"all": "all seeds", "learned": "those that learned it"}),
    ]


def _panel(
    task: str,
    rows: pl.DataFrame,
    means: pl.DataFrame,
    beside: pl.DataFrame,
    arms: list[str],
    lanes: list[str],
    *,
    full: pl.DataFrame | None,
    last: bool,
) -> alt.LayerChart:
    """One task. All layers share the arm on y, a lane for each origin of the numbers, and percent on x."""
    labels = [arm_label(arm) for arm in arms]
    y = alt.Y("arm:N", sort=labels, title=None, scale=alt.Scale(domain=labels, paddingInner=0.25))
    lane = alt.YOffset("lane:N", sort=None, scale=alt.Scale(domain=[LANES[name] for name in lanes]))
    axis = alt.Axis(title="Accuracy without it (%)" if last else None)
    x = alt.X("percent:Q", scale=alt.Scale(domain=[0, 100]), axis=axis)
    colour = alt.Color("arm:N", scale=arm_colours(arms), legend=None)
    moment = f"datum.moment == (checkpoint == 'paper' ? '{PAPER_MOMENT[task]}' : checkpoint)"
    measure = "datum.measure == how + '_' + component + '_accuracy'"

    seed_rows = rows.select(
        pl.col("arm").replace_strict({arm: arm_label(arm) for arm in arms}),
        "seed",
        "moment",
        "step",
        "converged",
        "spec_id",
        *(
            (pl.col(name) * 100).round(2).alias(name.removesuffix("_accuracy"))
            for name in ["accuracy", *MEASURES]
        ),
        pl.lit(LANES["here"]).alias("lane"),
    )
    base = (
        alt.Chart(seed_rows)
        .transform_filter(moment)
        .transform_calculate(percent="datum[how + '_' + component]")
        .encode(x, y, lane, colour)
    )
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        "seed:O",
        "step:Q",
        alt.Tooltip("percent:Q", title="without it (%)"),
        alt.Tooltip("accuracy:Q", title="intact (%)"),
        alt.Tooltip("converged:N", title="learned its task"),
        alt.Tooltip("spec_id:N", title="run"),
    ]
    symbols = base.mark_point(filled=False, size=45, strokeWidth=1.5).encode(
        shape=alt.Shape("arm:N", scale=arm_shapes(arms), legend=None),
        fill=alt.condition("datum.converged", colour, alt.value("transparent")),
        fillOpacity=alt.value(0.45),
        tooltip=tips,
    )
    mean_rows = means.select(
        pl.col("arm").replace_strict({arm: arm_label(arm) for arm in arms}, default=None),
        "moment",
        "measure",
        "over",
        "lane",
        "n",
        "seeds",
        *((pl.col(old) * 100).round(2).alias(new) for old, new in COLUMNS),
    ).drop_nulls("arm")
    average = (
        alt.Chart(mean_rows)
        .transform_filter(moment)
        .transform_filter(measure)
        .transform_filter("datum.over == over")
        .encode(y, lane)
    )
    mean_tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("lane:N", title="from"),
        alt.Tooltip("percent:Q", title="mean (%)"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]
    bars = average.mark_rule(strokeWidth=2.5).encode(alt.X("low:Q"), alt.X2("high:Q"), tooltip=mean_tips)
    ticks = average.transform_filter(f"datum.lane == '{LANES['here']}'").mark_tick(
        thickness=3, size=15, color="currentColor"
    )
    diamonds = average.transform_filter(f"datum.lane == '{LANES['full']}'").mark_point(
        shape="diamond", size=90, color="currentColor"
    )
    layers: list[alt.Chart] = [symbols, bars, ticks.encode(x, tooltip=mean_tips)]
    if "full" in lanes:
        layers.append(diamonds.encode(x, tooltip=mean_tips))
    panel: alt.LayerChart = (
        alt.layer(*_chance(rows, full), *layers, *_published(task, beside, y, lane, x, colour))
        .resolve_scale(color="independent", shape="independent", fill="independent")
        .properties(
            title=alt.Title(
                sentence(TASK_NAMES[task]),
                subtitle=sentence(setting_beside_paper(rows)),
                subtitleFontSize=12,
                offset=14,
            ),
            width=500,
            height=alt.Step(15, **{"for": "offset"}),
        )
    )
    return panel


STAR: dict[str, Any] = {
    "shape": "M0,-1L0.23,-0.32L0.95,-0.31L0.37,0.12L0.59,0.81L0,0.4L-0.59,0.81L-0.37,0.12L-0.95,-0.31L-0.23,-0.32Z",
    "opacity": 1,
    "stroke": "currentColor",
    "strokeWidth": 1,
}
"""The mark of a published value: outlined, so that it is seen on top of many models."""


def _published(
    task: str, beside: pl.DataFrame, y: alt.Y, lane: alt.YOffset, x: alt.X, colour: alt.Color
) -> list[alt.Chart]:
    if beside.is_empty():
        return []
    rows = beside.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        "component",
        "sd",
        "n",
        "source_text",
        pl.col("value").alias("percent"),
        (pl.col("value") - pl.col("sd")).alias("low"),
        (pl.col("value") + pl.col("sd")).alias("high"),
        pl.lit(LANES["paper"]).alias("lane"),
    )
    shown = (
        alt.Chart(rows)
        .transform_filter(
            "datum.component == component && how == 'no' && "
            f"(checkpoint == 'paper' || checkpoint == '{PAPER_MOMENT[task]}')"
        )
        .transform_calculate(
            words="'paper: ' + format(datum.percent, '.1f') + (datum.sd ? ' ± ' + format(datum.sd, '.1f') : '')",
            edge="datum.high || datum.percent",
        )
        .encode(y, lane)
    )
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("percent:Q", title="published (%)"),
        alt.Tooltip("sd:Q", title="standard deviation"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("source_text:N", title="source"),
    ]
    return [
        shown.mark_rule(strokeWidth=1, strokeDash=[2, 2]).encode(alt.X("low:Q"), alt.X2("high:Q")),
        shown.mark_point(size=230, **STAR).encode(x, colour, tooltip=tips),
        shown.mark_text(align="left", dx=9, fontSize=11).encode(alt.X("edge:Q"), text="words:N"),
    ]


def _shares(rows: pl.DataFrame) -> pl.DataFrame:
    """What strategies score that compute nothing, on the task that these runs learned."""
    shares = task_of(rows).chance().items()
    return pl.DataFrame([{"percent": round(100 * share, 2), "line": name} for name, share in shares])


def _chance(rows: pl.DataFrame, full: pl.DataFrame | None) -> list[alt.Chart]:
    lines = _shares(rows)
    base = alt.Chart(lines).encode(alt.X("percent:Q"))
    tips = [alt.Tooltip("line:N", title="strategy"), alt.Tooltip("percent:Q", title="accuracy (%)")]
    names = [  # one above the other, since the lines may stand close
        base.transform_filter(alt.datum.line == name)
        .mark_text(align="left", dx=4, dy=-7 - 12 * place, fontSize=11, fontStyle="italic")
        .encode(y=alt.value(0), text="line:N")
        for place, name in enumerate(lines["line"])
    ]
    layers = [base.mark_rule(strokeDash=[6, 4], opacity=0.6).encode(tooltip=tips), *names]
    if full is not None and len(full) and not (larger := _shares(full)).equals(lines):
        named = larger.with_columns(pl.format("full scale: {}", "line").alias("line"))
        rule = alt.Chart(named).mark_rule(strokeDash=[1, 4], strokeWidth=1.5)
        layers.append(rule.encode(alt.X("percent:Q"), tooltip=tips))
    return layers


def _in_words(means: pl.DataFrame) -> str:
    """The means at the paper's checkpoint, for those who do not see the picture."""
    parts = []
    for task, name in TASK_NAMES.items():
        rows = means.filter(
            task=task,
            moment=PAPER_MOMENT[task],
            measure="no_ffn_accuracy",
            over="all",
            lane=LANES["here"],
        )
        values = ", ".join(
            f"{arm_label(arm)} {percent(m)}" for arm, m in rows.select("arm", "mean").iter_rows()
        )
        parts.append(f"{sentence(name)}: {values or 'no model learned it'}.")
    return " ".join(parts)
