"""Looks over training, drawn: every seed a thin line, means and intervals over them, one measure at a time."""

from collections.abc import Mapping

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.claim_words import signed
from sparsity_moves.figures.prose import Text, hover
from sparsity_moves.figures.strips import nothing_yet, selected
from sparsity_moves.figures.summary import METHOD, summaries, summary
from sparsity_moves.figures.theme import arm_colours, arm_label
from sparsity_moves.studies.statistics import Comparison, compare

LEVEL = 0.05
"""Of the t-test."""


def over_training(
    looks: pl.DataFrame,
    measures: Mapping[str, str],
    *,
    name: str,
    caption: str,
    choice: tuple[str, str] | None = None,
    x: tuple[str, str] = ("step", "Training step"),
    logarithmic: bool = False,
) -> Figure | Text:
    """Lines of each arm over training.

    Args:
        looks: one row a run and look: `arm`, `seed`, the column of `x`, and the measures.
        measures: columns in words; a selection box where there are several.
        name, caption: of the figure; the caption goes on with what the marks are.
        choice: a column of settings to choose from, and what the choice is called.
        x: the column on the axis, and its title.
        logarithmic: the y axis.
    """
    if looks.is_empty():
        return nothing_yet("This course of training")
    key = [choice[0]] if choice else []
    arms = looks["arm"].unique(maintain_order=True).to_list()
    each = looks.select(
        *key,
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        "seed",
        pl.col(x[0]).alias("at"),
        pl.col(*measures).round(4),
    )
    long = each.unpivot(
        list(measures), index=[*key, "arm", "seed", "at"], variable_name="measure"
    ).drop_nulls()
    means = summaries(long, [*key, "arm", "at", "measure"], "value")
    means = means.with_columns(pl.col("mean", "low", "high").round(4)).drop("sd")
    of_choice = f"datum.{choice[0]} == chosen" if choice else "true"
    here = f"datum.measure == measure && {of_choice}"
    scale = alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(zero=False)
    across = alt.X("at:Q", title=x[1])
    up = alt.Y("mean:Q", title="Measure chosen", scale=scale)
    colour = alt.Color(
        "arm:N", scale=arm_colours(arms), legend=alt.Legend(title=None, orient="top", symbolOpacity=1)
    )
    average = alt.Chart(means).transform_filter(here)
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("at:Q", title=x[1].lower()),
        "mean:Q",
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds"),
    ]
    chart = alt.layer(
        alt.Chart(each)  # a row a look, not a row a look and measure: the page stays light
        .transform_calculate(value="datum[measure]")
        .transform_filter(f"{of_choice} && isValid(datum.value)")
        .mark_line(strokeWidth=0.8, opacity=0.35, tooltip=None)
        .encode(across, alt.Y("value:Q", scale=scale), colour, alt.Detail("seed:N")),
        average.mark_area(opacity=0.2, tooltip=None).encode(
            across, alt.Y("low:Q", scale=scale), alt.Y2("high:Q"), colour
        ),
        average.mark_line(strokeWidth=2.5, point=alt.OverlayMarkDef(size=28)).encode(
            across, up, colour, tooltip=tips
        ),
    ).properties(width=480, height=260)
    controls = [selected("measure", "Shown:", measures)]
    if choice:
        values = looks[choice[0]].unique(maintain_order=True).to_list()
        controls.append(selected("chosen", choice[1], {value: str(value) for value in values}))
    last = means.filter(pl.col("at") == pl.col("at").max(), measure=next(iter(measures)))
    seeds = looks.group_by("arm", *key).agg(pl.col("seed").n_unique())["seed"]
    fewest, most = min(seeds.to_list()), max(seeds.to_list())
    number = str(fewest) if fewest == most else f"{fewest} to {most}"
    return show(
        chart.add_params(*controls),
        name=name,
        caption=f"{caption} Thin lines: every seed ({number} each); thick line and band: mean and {METHOD}.",
        alt=f"Lines over training. At the end, {next(iter(measures.values()))}: "
        + ", ".join(
            f"{' '.join(str(row[column]) for column in ('arm', *key))} {row['mean']:.3g}"
            for row in last.iter_rows(named=True)
        )
        + ".",
        data=means,
    )


def last(looks: pl.DataFrame) -> pl.DataFrame:
    """Each run's last look."""
    return looks.filter(pl.col("step") == pl.col("step").max().over("run"))


def first(looks: pl.DataFrame) -> pl.DataFrame:
    """Each run's first."""
    return looks.filter(pl.col("step") == pl.col("step").min().over("run"))


def paired(one: pl.DataFrame, other: pl.DataFrame, measure: str, scale: float = 1) -> Comparison:
    """One minus the other, seed by seed. Raises `ValueError` where no seed has both."""
    both = one.select("seed", measure).join(other.select("seed", measure), on="seed", suffix="_other")
    differences = ((both[measure] - both[f"{measure}_other"]) * scale).to_list()
    return compare(differences)


def difference(found: Comparison, places: int = 1, unit: str = "\u00a0points", more: str = "") -> str:
    """ "+12.3 points (95 % CI 8.1 to 16.0)", with the number of pairs, and `more`, on hover."""
    bounds = ""
    if found.low is not None and found.high is not None:
        bounds = f" (95\u00a0% CI {signed(found.low, places)} to {signed(found.high, places)})"
    return hover(
        f"{signed(found.mean, places)}{unit}{bounds}", f"{found.n} pairs, {found.positive} above zero{more}"
    )


def sure(found: Comparison) -> int:
    """+1 or -1 where the interval is on that side of zero and a paired t-test says so, too; else 0.

    The interval alone is too sure of three seeds: it is their range.
    """
    if found.low is None or found.high is None or found.p is None or found.p >= LEVEL:
        return 0
    return int(found.low > 0) - int(found.high < 0)


def average(rows: pl.DataFrame, measure: str, scale: float = 1, places: int = 1, unit: str = "") -> str:
    """A mean over seeds, with its interval on hover."""
    found = summary((rows[measure] * scale).to_list())
    bounds = (
        f"95 % CI {found.low:.{places}f} to {found.high:.{places}f}"
        if found.low is not None and found.high is not None
        else "no interval"
    )
    return hover(f"{found.mean:.{places}f}{unit}", f"n = {found.n} seeds, {bounds}")
