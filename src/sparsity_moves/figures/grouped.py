"""Numbers of parts of a model: one value a model and part, arms side by side, full scale above this computer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import polars as pl

from sparsity_moves.figures.ablation import STAR
from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.looks import difference, paired
from sparsity_moves.figures.prose import Text, hover, listed
from sparsity_moves.figures.strips import LANES, nothing_yet, selected
from sparsity_moves.figures.summary import METHOD, spans, summaries, summary, with_convergence
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes
from sparsity_moves.figures.words import MOMENT_NAMES
from sparsity_moves.studies.argument import Argument

FOUR = ("dense", "glu", "moe", "moe_glu")
"""The arms that the paper looks into."""
MANY = 20
"""Symbols of so many models lie over one another: paler, they leave mean, interval and star to be seen."""
DIGITS = ("ones", "tens", "hundreds")
WHOSE = {"all": "all", "learned": "that learned the task"}
"""Models that are shown."""
OFFERED = 0.95
"""The reader is asked which where fewer have learned it."""


@dataclass(frozen=True)
class Choice:
    """A column that a selection box picks a value of, first the first."""

    label: str
    options: Mapping[str, str]
    """Values, in words."""


def learners(argument: Argument, rows: pl.DataFrame) -> list[str]:
    """Those of the rows' models, by their spec_id, that have learned their task by the last step."""
    found: list[str] = []
    for evidence in filter(None, (argument.main, argument.own)):
        models = evidence.rows.join(rows.select("spec_id").unique(), on="spec_id", how="semi")
        found += with_convergence(models).filter("converged", moment="final")["spec_id"].unique().to_list()
    return found


def digit_names() -> pl.Expr:
    """Output digits by their read-out; the one beyond the last input digit is the overflow."""
    names = pl.col("position").replace_strict(dict(enumerate(DIGITS)), default=None, return_dtype=pl.String)
    return pl.when(pl.col("position") == pl.col("digits")).then(pl.lit("overflow")).otherwise(names)


def grouped(
    argument: Argument,
    rows: pl.DataFrame,
    *,
    name: str,
    caption: str,
    title: str,
    parts: Sequence[str],
    arms: Sequence[str] = FOUR,
    choices: Mapping[str, Choice] | None = None,
    domain: tuple[float, float] | None = None,
    logarithmic: bool = False,
    published: pl.DataFrame | None = None,
    lines: pl.DataFrame | None = None,
) -> Figure | Text:
    """One value a model for every part, arms side by side, means with intervals, published values as stars.

    Where many models did not learn their task, the reader can have them left out.

    Args:
        argument: where the rows are from.
        rows: `lane`, `arm`, `seed`, `spec_id`, `moment`, `part` and `value`, one row a model, part and choice.
        name, caption: of the figure; the caption goes on with what the marks are.
        title: of the axis.
        parts, arms: in their order; those without rows are left out.
        choices: columns of the rows that the reader picks a value of.
        domain, logarithmic: of the axis; from the values unless given.
        published: `arm`, `part`, `value`, `source_text` and the choices, as far as there are any.
        lines: reference values: `line` (what it is), `value`, and `lane` or choices where they differ by them.
    """
    choices = choices or {}
    rows = rows.filter(pl.col("part").is_in(list(parts)), pl.col("arm").is_in(list(arms))).drop_nulls("value")
    rows = rows.with_columns(pl.col("value").cast(pl.Float64).round_sig_figs(5))
    if rows.is_empty():
        return nothing_yet("This measure")
    there = [arm for arm in arms if arm in set(rows["arm"])]
    shown = [part for part in parts if part in set(rows["part"])]
    keys = ["lane", "arm", "part", *choices]
    models = counted = rows.select(*keys, "seed", "moment", "value", "spec_id")
    able = models["spec_id"].is_in(learners(argument, rows))
    if apart := 0 < able.sum() < OFFERED * len(able):
        choices, keys = {**choices, "models": Choice("Models", WHOSE)}, [*keys, "models"]
        models = models.with_columns(learned=able)
        counted = pl.concat(
            [
                models.with_columns(models=pl.lit("all")),
                models.filter("learned").with_columns(models=pl.lit("learned")),
            ]
        )
    means = summaries(counted, keys, "value")
    means = means.with_columns(pl.col("mean", "low", "high").round_sig_figs(5))
    models, means = _named(models), _named(means)
    stars = None if published is None else _named(published)
    labels = [arm_label(arm) for arm in there]
    scale = (
        alt.Scale(type="log") if logarithmic else alt.Scale(domain=domain) if domain else alt.Scale(zero=True)
    )
    axes = {
        "x": alt.X(
            "part:N",
            sort=shown,
            title=None,
            axis=alt.Axis(labelAngle=-35 if len(shown) > 4 or sum(map(len, shown)) > 30 else 0),
            scale=alt.Scale(domain=shown),
        ),
        "xOffset": alt.XOffset("arm:N", sort=labels, scale=alt.Scale(domain=labels)),
        "color": alt.Color(
            "arm:N",
            scale=arm_colours(there),
            legend=alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1),
        ),
    }

    def y(column: str) -> alt.Y:
        return alt.Y(f"{column}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))

    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("part:N"),
        alt.Tooltip("mean:Q"),
        alt.Tooltip("low:Q", title="95 % CI from"),
        alt.Tooltip("high:Q", title="to"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]

    def chosen(frame: pl.DataFrame) -> alt.Chart:
        here = " && ".join(f"datum.{column} == {column}" for column in choices if column in frame.columns)
        return alt.Chart(frame).transform_filter(here) if here else alt.Chart(frame)

    def unfolded(frame: pl.DataFrame) -> alt.Chart:
        """One row a model in the page, and a column a part and choice: with many seeds a fifth of the bytes."""
        kinds = ["part", *(column for column in choices if column in frame.columns)]
        index = [column for column in frame.columns if column not in (*kinds, "value")]
        found = frame.select(kinds).unique(maintain_order=True).with_row_index("column")
        found = found.with_columns(pl.format("p{}", "column").alias("column"))
        frame = frame.with_columns(pl.col("value").round_sig_figs(3))
        wide = frame.join(found, on=kinds).pivot(on="column", index=index, values="value")
        meant = {column: kind for column, *kind in found.iter_rows()}
        chart = alt.Chart(wide).transform_fold(list(meant), as_=["column", "value"])
        for place, kind in enumerate(kinds):
            names = {column: kind_[place] for column, kind_ in meant.items()}
            chart = chart.transform_calculate(**{kind: f"{json.dumps(names)}[datum.column]"})
        here = [f"datum.{column} == {column}" for column in kinds[1:]]
        here += ["(models == 'all' || datum.learned)"] if apart else []
        return chart.transform_filter(" && ".join(["isValid(datum.value)", *here]))

    def panel(lane: str) -> alt.LayerChart | alt.FacetChart:
        own, average = models.filter(lane=lane).drop("lane"), means.filter(lane=lane).drop("lane")
        layers: list[alt.Chart] = [
            unfolded(own)
            .mark_point(
                filled=False, size=24, strokeWidth=1.2, opacity=0.6 if own["seed"].n_unique() < MANY else 0.4
            )
            .encode(
                **axes,
                y=y("value"),
                shape=alt.Shape("arm:N", scale=arm_shapes(there)),
                tooltip=[
                    alt.Tooltip("arm:N", title="FFN"),
                    "seed:O",
                    "value:Q",
                    alt.Tooltip("moment:N", title="at"),
                    alt.Tooltip("spec_id:N", title="run"),
                ],
            ),
        ]
        if len(average := average.filter(pl.col("n") > 1)):  # the mean of one model is its symbol
            tick = {key: value for key, value in axes.items() if key != "color"}
            layers += [
                chosen(average)
                .mark_rule(strokeWidth=2.5)
                .encode(**axes, y=y("low"), y2=alt.Y2("high:Q"), tooltip=tips),
                chosen(average)
                .mark_tick(thickness=3, size=12, color="currentColor")
                .encode(**tick, y=y("mean"), tooltip=tips),
            ]
        if stars is not None and len(stars):
            layers.append(
                chosen(stars)
                .mark_point(size=150, **STAR)
                .encode(
                    **axes,
                    y=y("value"),
                    tooltip=[
                        alt.Tooltip("arm:N", title="FFN"),
                        alt.Tooltip("value:Q", title="published"),
                        alt.Tooltip("source_text:N", title="source"),
                    ],
                )
            )
        if lines is not None and len(at := lines.filter(lane=lane) if "lane" in lines.columns else lines):
            base = chosen(at).encode(y=y("value"))
            layers.append(
                base.mark_rule(strokeDash=[6, 4], opacity=0.6).encode(tooltip=["line:N", "value:Q"])
            )
            layers.append(
                base.mark_text(align="left", dx=3, dy=-6, fontSize=11, fontStyle="italic").encode(
                    x=alt.value(0), text="line:N"
                )
            )
        return alt.layer(*layers).properties(width=480, height=190, title=_whose(argument, rows, lane))

    lanes = [lane for lane in ("main", "own") if lane in set(rows["lane"])]
    picks = [selected(column, choice.label, choice.options) for column, choice in choices.items()]
    chart = alt.vconcat(*(panel(lane) for lane in lanes), spacing=14)
    first = means.filter(lane=lanes[0])
    for column, choice in choices.items():
        first = first.filter(pl.col(column) == next(iter(choice.options)))
    told = ", ".join(
        f"{arm} {part} {mean:.3g}" for arm, part, mean in first.select("arm", "part", "mean").iter_rows()
    )
    return show(
        chart.add_params(*picks) if picks else chart,
        name=name,
        caption=f"{caption} {marks(rows, stars is not None and len(stars) > 0)}",
        alt=f"Means: {told}.",
        data=models,
    )


def marks(rows: pl.DataFrame, published: bool = False) -> str:
    """What the marks are, and of how many models; a single one has no interval."""
    counts = rows.group_by("lane", "arm").agg(pl.col("seed").n_unique())["seed"]
    moments = listed([MOMENT_NAMES[m] for m in rows["moment"].unique(maintain_order=True)])
    ticks = f" Tick and bar: mean and {METHOD}." if max(counts) > 1 else ""
    few = " Where there is one seed, no interval is claimed." if min(counts) == 1 else ""
    stars = " Stars: published {cite:p}`smithline2026`." if published else ""
    return f"One symbol a model, at {moments}.{ticks}{few}{stars}"


def _named(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("arm").map_elements(arm_label, return_dtype=pl.String))


def _whose(argument: Argument, rows: pl.DataFrame, lane: str) -> str:
    """ "Full scale: 1 seed an arm"."""
    numbers = rows.filter(lane=lane).group_by("arm").agg(pl.col("seed").n_unique())["seed"]
    low, high = min(numbers), max(numbers)
    many = f"{low}" if low == high else f"{low} to {high}"
    who = LANES[lane] if lane == "own" or argument.profile == "paper" else f"{argument.profile} profile"
    return f"{who[:1].upper()}{who[1:]}: {many} seed{'' if high == 1 else 's'} an arm"


FEW = 3
"""Fewer seeds than this have no interval worth the name."""


def part_mean(
    argument: Argument, rows: pl.DataFrame, unit: str = "", *, median: bool = False, **where: object
) -> str:
    """A mean of such rows in a sentence, with its interval: of the full-scale runs, or of the reader's.

    The reader's are told where they are more and the full-scale ones are few. Pointed at, it says n and runs. `where`
    are columns and values; `unit` is % or nothing. With `median`, that and the quartiles instead.
    """
    own = _told_lane(rows.filter(**where).drop_nulls("value"))
    if own.is_empty():
        return "*not yet measured*"
    values = own["value"].to_list()
    found = summary(values)
    middle, low, high = found.mean, found.low, found.high
    what = "95 % CI"
    if median:
        quartiles = [own["value"].quantile(share, "linear") for share in (0.5, 0.25, 0.75)]
        middle, low, high = (float(value) for value in quartiles if value is not None)
        what = "median and quartiles"
    shown, bounds = _number(middle, unit) + ("\u00a0%" if unit == "%" else ""), "no interval"
    if low is not None and high is not None and found.n > 1:
        bounds = f"{what} {_number(low, unit)} to {_number(high, unit)}"
        shown += f" ({_number(low, unit)} to {_number(high, unit)})"
    else:
        shown += f" (n\u00a0=\u00a0{found.n})"
    who = "this computer" if own["lane"][0] == "own" else f"{argument.profile} profile"
    at = listed([MOMENT_NAMES[m] for m in own["moment"].unique(maintain_order=True)])
    return hover(
        shown,
        f"{arm_label(own['arm'][0])}, {who}, at {at}: n = {found.n}, {bounds}; runs of seeds {spans(own['seed'])}",
    )


def part_difference(rows: pl.DataFrame, arm: str, against: str, unit: str = "", **where: object) -> str:
    """How much larger such a mean is for one arm than for another, paired by seed, with its interval."""
    found = rows.filter(**where).drop_nulls("value")
    own = _told_lane(found.filter(arm=arm))
    other = found.filter(arm=against, lane=own["lane"][0]) if len(own) else own
    seeds = set(own["seed"]) & set(other["seed"])
    if not seeds:
        return "*not yet measured*"
    places, points = (1, " points") if unit == "%" else (3, "")
    whose = f"; {arm_label(arm)} minus {arm_label(against)}, runs of seeds {spans(seeds)}"
    return difference(paired(own, other, "value"), places, points, whose)


def _told_lane(rows: pl.DataFrame) -> pl.DataFrame:
    """The full-scale rows, or the reader's where these are of more seeds and the full-scale ones of few."""
    sizes = {lane: rows.filter(lane=lane)["seed"].n_unique() for lane in ("main", "own")}
    return rows.filter(lane="main" if sizes["main"] >= FEW else max(sizes, key=lambda lane: sizes[lane]))


def _number(value: float, unit: str) -> str:
    """With as many digits as tell it apart from its neighbours."""
    if unit == "%":
        said = f"{value:.0f}"
    elif 0 < abs(value) < 0.001:
        said = "under 0.001" if value > 0 else "over -0.001"
    else:
        said = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
    return said.replace("-", "−")
