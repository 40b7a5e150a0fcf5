"""Does the router learn? Each router minus its frozen twin, seed by seed, and what routers know of the operation."""

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.claim_words import signed
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import LANES, REPLACED, checkpoint, marks, nothing_yet, selected
from sparsity_moves.figures.summary import differences, summaries
from sparsity_moves.figures.theme import ARMS, arm_label
from sparsity_moves.studies.argument import Argument

TWINS = {
    "moe": "moe_frozen",
    "moe_glu": "moe_glu_frozen",
    "moe_switch": "moe_switch_frozen",
    "moe_top2": "moe_top2_frozen",
}
"""A router and the same, never trained. The task trains the last two only."""
TRAINED = ("moe_switch", "moe_top2")
MARGIN = 5.0
"""Points within which two routers are called alike, as in `claims.toml`."""


def learned_frozen(argument: Argument, task: str = "add7") -> Figure | Text:
    """Learned minus frozen, one symbol a seed, with the margin of likeness as a band."""
    main = argument.moments(task, [*TWINS, *TWINS.values()])
    own = argument.beside(task, [*TWINS, *TWINS.values()])
    lanes = [("main", main)] + ([("own", own)] if own is not None else [])
    parts = [_pairs(rows, lane) for lane, rows in lanes if len(rows)]
    if not parts or not sum(map(len, parts)):
        return nothing_yet("This comparison")
    rows = pl.concat(parts)
    key = ["router", "lane", "moment", "measure"]
    means = summaries(rows, key, "points").with_columns(pl.col("mean", "low", "high").round(2))
    arms = [arm for arm in TWINS if _label(arm) in set(rows["router"])]
    labels = [_label(arm) for arm in arms]
    y = alt.Y(
        "router:N",
        sort=labels,
        title=None,
        scale=alt.Scale(domain=labels, paddingInner=0.3),
        axis=alt.Axis(labelLimit=220),
    )
    lane = alt.YOffset("lane:N", sort=None, scale=alt.Scale(domain=[LANES[name] for name, _ in lanes]))
    x = alt.X("points:Q", title="Learned minus frozen: accuracy without the FFN (points)")
    colour = alt.Color(
        "router:N", scale=alt.Scale(domain=labels, range=[ARMS[arm].colour for arm in arms]), legend=None
    )
    here = "datum.measure == measure && datum.moment == checkpoint"
    tips = [
        alt.Tooltip("router:N"),
        alt.Tooltip("lane:N", title="from"),
        alt.Tooltip("mean:Q", format="+.1f"),
        alt.Tooltip("low:Q", title="95 % CI from", format="+.1f"),
        alt.Tooltip("high:Q", title="to", format="+.1f"),
        alt.Tooltip("n:Q", title="pairs"),
        alt.Tooltip("seeds:N", title="runs of seeds"),
    ]
    band = pl.DataFrame({"low": [-MARGIN], "high": [MARGIN]})
    average = alt.Chart(means).transform_filter(here)
    chart = alt.layer(
        alt.Chart(band)
        .mark_rect(opacity=0.13, color="#3077cd", tooltip=None)
        .encode(alt.X("low:Q"), alt.X2("high:Q")),
        alt.Chart(pl.DataFrame({"none": [0]})).mark_rule(strokeWidth=1).encode(alt.X("none:Q")),
        alt.Chart(rows)
        .transform_filter(here)
        .mark_point(filled=False, size=32, strokeWidth=1.3, opacity=0.75)
        .encode(
            x,
            y,
            lane,
            colour,
            tooltip=["router:N", "seed:O", alt.Tooltip("lane:N", title="from"), "points:Q"],
        ),
        average.mark_rule(strokeWidth=2.5).encode(alt.X("low:Q"), alt.X2("high:Q"), y, lane, tooltip=tips),
        average.mark_tick(thickness=3, size=14, color="currentColor").encode(
            alt.X("mean:Q"), y, lane, tooltip=tips
        ),
    ).properties(width=440, height=alt.Step(20, **{"for": "offset"}))
    said = means.filter(
        lane=LANES[lanes[0][0]] if len(main) else LANES["own"], moment="first_best", measure="no_ffn_accuracy"
    )
    return show(
        chart.add_params(
            selected("measure", "The FFN's output is", REPLACED),
            checkpoint(*dict(lanes).values()),
        ),
        name="learned-frozen",
        caption=(
            "A learned router minus its frozen twin, paired by seed: left of zero, learning moved *less* computation "
            f"into attention. Band: ± {MARGIN:g} points, the margin within which the book calls two arms alike. "
            + marks(main, own).replace("One symbol a model", "One symbol a pair")
        ),
        alt="Learned minus frozen router, in points at the paper's checkpoint: "
        + ", ".join(
            f"{router} {signed(mean, 1)}" for router, mean in said.select("router", "mean").iter_rows()
        )
        + ".",
        data=rows,
    )


def _pairs(rows: pl.DataFrame, lane: str) -> pl.DataFrame:
    found = []
    for learned, frozen in TWINS.items():
        both = rows.filter(pl.col("arm").is_in([learned, frozen]))
        for measure in REPLACED:
            each = differences(both, ["moment"], measure, against=frozen).filter(arm=learned)
            found.append(
                each.select(
                    pl.lit(_label(learned)).alias("router"),
                    "seed",
                    "moment",
                    pl.lit(measure).alias("measure"),
                    (pl.col("difference") * 100).round(2).alias("points"),
                    pl.lit(LANES[lane]).alias("lane"),
                )
            )
    return pl.concat(found)


def _label(arm: str) -> str:
    return f"{arm_label(arm)} ({'trained by the task' if arm in TRAINED else 'by the balance loss only'})"
