"""Expert count × width on add-7: a map of the means, and every model of the cell that two sliders pick."""

import math
from itertools import pairwise

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import percent
from sparsity_moves.figures.summary import METHOD, summaries
from sparsity_moves.figures.theme import ARMS
from sparsity_moves.figures.words import profile, seeds, setting

SHOWN = {
    "accuracy": "intact",
    "no_ffn_accuracy": "without the FFN",
    "no_attention_accuracy": "without attention",
}


def expert_sweep(
    moments: pl.DataFrame, full: pl.DataFrame | None = None, *, experts: int = 4, moment: str = "final"
) -> Figure:
    """No-FFN accuracy by number of experts and total width, all powers of two.

    Args:
        moments: `runs.moments` of the sweep study.
        full: the same at full scale, of any of the widths.
        experts: where the slider stands at first.
        moment: the checkpoint looked at.

    Raises:
        ValueError: a count or a width is no power of two, so that the sliders cannot name it.
    """
    rows = moments.filter(moment=moment)
    counts, widths = (sorted(rows[name].unique()) for name in ("experts", "width"))
    if odd := [n for n in (*counts, *widths) if n < 1 or n & (n - 1)]:
        raise ValueError(f"the sweep's sliders go through powers of two, which {odd[0]} is not")
    chosen = {"experts": experts if experts in counts else counts[-1], "width": widths[-1]}
    sliders = [
        alt.param(
            name=f"log_{name}",  # chart.js shows 2 to this power
            value=math.log2(chosen[name]),
            bind=alt.binding_range(
                min=math.log2(values[0]),
                max=math.log2(values[-1]),
                step=min((math.log2(b / a) for a, b in pairwise(values)), default=1),
                name=f"{name.capitalize()} ",
            ),
        )
        for name, values in (("experts", counts), ("width", widths))
    ]
    here = "datum.experts == pow(2, log_experts) && datum.width == pow(2, log_width)"
    key = ["experts", "width"]
    means = summaries(rows, key, "no_ffn_accuracy").with_columns(
        (pl.col("mean") * 100).round(1).alias("percent")
    )
    cell = alt.Chart(means.select(*key, "percent", "n", "seeds")).encode(
        alt.X("experts:O", title="Experts", axis=alt.Axis(labelAngle=0)),
        alt.Y("width:O", title="Width", sort="descending"),
    )
    most = max(means["percent"])
    grid = alt.layer(
        cell.mark_rect().encode(
            alt.Color(
                "percent:Q",
                title="No-FFN accuracy (%)",
                scale=alt.Scale(domain=[0, 100], range=["#eef4fb", "#0d3b6e"]),
                legend=alt.Legend(orient="top", gradientLength=220),
            ),
            tooltip=[
                "experts:O",
                "width:O",
                alt.Tooltip("percent:Q", title="mean (%)"),
                alt.Tooltip("n:Q", title="seeds"),
                alt.Tooltip("seeds:N", title="runs of seeds"),
            ],
        ),
        cell.mark_text(fontSize=13).encode(
            text=alt.Text("percent:Q", format=".0f"),
            color=alt.condition("datum.percent > 45", alt.value("white"), alt.value("black")),
        ),
        cell.transform_filter(here).mark_rect(filled=False, stroke="#d1500b", strokeWidth=4, tooltip=None),
    ).properties(width=500, height=alt.Step(34))

    long = rows.unpivot(list(SHOWN), index=[*key, "seed"], variable_name="shown").with_columns(
        pl.col("shown").replace_strict(SHOWN), (pl.col("value") * 100).round(2).alias("percent")
    )
    averages = summaries(
        rows.unpivot(list(SHOWN), index=[*key, "seed"], variable_name="shown"), [*key, "shown"], "value"
    ).with_columns(
        pl.col("shown").replace_strict(SHOWN),
        *((pl.col(name) * 100).round(2) for name in ("mean", "low", "high")),
    )
    y = alt.Y("shown:N", sort=list(SHOWN.values()), title=None)
    x = alt.Scale(domain=[0, 100])
    strip = alt.layer(
        alt.Chart(long.drop("value"))
        .transform_filter(here)
        .mark_point(size=60, filled=True, opacity=0.6, color=ARMS["moe"].colour)
        .encode(
            alt.X("percent:Q", title="Accuracy (%)", scale=x),
            y,
            tooltip=["seed:O", "shown:N", alt.Tooltip("percent:Q", title="accuracy (%)")],
        ),
        alt.Chart(averages.drop("sd"))
        .transform_filter(here)
        .mark_rule(strokeWidth=2.5)
        .encode(alt.X("low:Q"), alt.X2("high:Q"), y),
        alt.Chart(averages.drop("sd"))
        .transform_filter(here)
        .mark_tick(thickness=3, size=16, color="currentColor")
        .encode(
            alt.X("mean:Q"),
            y,
            tooltip=[
                "shown:N",
                "mean:Q",
                "low:Q",
                "high:Q",
                "n:Q",
                alt.Tooltip("seeds:N", title="runs of seeds"),
            ],
        ),
    ).properties(
        width=500,
        height=alt.Step(30),
        title={
            "text": {
                "expr": "pow(2, log_experts) == 1 ? 'One expert of width ' + pow(2, log_width) + ': the dense layer'"
                " : pow(2, log_experts) + ' experts of width ' + pow(2, log_width - log_experts) + ' each'"
            }
        },
    )
    if full is not None and len(full := full.filter(moment=moment)):
        strip += _diamonds(full, here)
    low, high = (means.filter(experts=n, width=widths[-1])["mean"][0] for n in (counts[0], counts[-1]))
    return show(
        alt.vconcat(grid, strip, spacing=24).add_params(*sliders),
        name="sweep",
        caption=(
            f"No-FFN accuracy on addition with carry ({setting(rows)}) by number of experts and total FFN width: "
            f"{seeds(rows)}, {profile(rows)}, last step. Above, means; below, each seed of the cell that the "
            f"sliders pick, its mean and {METHOD}."
            + (
                f" Diamonds: means at full scale ({seeds(full)}), where that cell was trained."
                if full is not None
                else ""
            )
        ),
        alt=(
            f"A map of accuracy without the FFN, up to {most:.0f} %. At width {widths[-1]} it goes from "
            f"{percent(low)} with {counts[0]} expert to {percent(high)} with {counts[-1]}. "
            "Below, the seeds of one cell."
        ),
        data=rows.select("experts", "width", "seed", *SHOWN, "step", "spec_id"),
    )


def _diamonds(full: pl.DataFrame, here: str) -> alt.Chart:
    """Means of the full-scale runs of the cell that is picked."""
    keys = ["experts", "width", "shown"]
    found = summaries(
        full.unpivot(list(SHOWN), index=[*keys[:2], "seed"], variable_name="shown"), keys, "value"
    )
    rows = found.drop("sd").with_columns(
        pl.col("shown").replace_strict(SHOWN),
        *((pl.col(name) * 100).round(2) for name in ("mean", "low", "high")),
    )
    diamonds: alt.Chart = (
        alt.Chart(rows)
        .transform_filter(here)
        .mark_point(shape="diamond", size=110, filled=False, strokeWidth=2, color="#9c6e00")
        .encode(
            alt.X("mean:Q"),
            alt.Y("shown:N", sort=list(SHOWN.values()), title=None),
            tooltip=[
                "shown:N",
                alt.Tooltip("mean:Q", title="full scale (%)"),
                alt.Tooltip("low:Q", title="95 % CI from"),
                alt.Tooltip("high:Q", title="to"),
                alt.Tooltip("n:Q", title="seeds"),
                alt.Tooltip("seeds:N", title="runs of seeds"),
            ],
        )
    )
    return diamonds
