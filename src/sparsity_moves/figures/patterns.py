"""Where the heads look: mean attention patterns of single models, by carry length."""

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.grouped import DIGITS, digit_names
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import LANES, nothing_yet, selected
from sparsity_moves.figures.theme import arm_colours, arm_label
from sparsity_moves.studies.argument import Argument

ARMS = ("dense", "moe")
SHOWN = {"main": 2, "own": 3}
"""Seeds to choose from: heads of two models have no common order, so patterns are never averaged over seeds."""


def pattern_rows(argument: Argument) -> pl.DataFrame:
    """Mean attention weight by head, digit that is answered, token that is looked at and carry length."""
    rows = argument.measured("attention", "add7", ARMS).filter(
        pl.col("position") <= pl.col("digits"), pl.col("carry") <= pl.col("digits")
    )
    ranks = pl.col("seed").rank("dense").over("lane", "arm")
    rows = rows.with_columns(ranks.alias("place"))
    rows = rows.filter(
        pl.col("place") <= pl.col("lane").replace_strict(SHOWN, default=0, return_dtype=pl.Int64)
    )
    own = {
        lane: words if lane == "own" or argument.profile == "paper" else argument.profile
        for lane, words in LANES.items()
    }
    token = (
        pl.when(pl.col("key") < pl.col("digits"))
        .then(pl.format("in {}", pl.col("key") + 1))
        .when(pl.col("key") == pl.col("digits"))
        .then(pl.lit("end"))
        .otherwise(pl.format("out {}", pl.col("key") - pl.col("digits")))
    )
    return rows.with_columns(
        digit=digit_names(),
        token=token,
        model=pl.format("{}, seed {}", pl.col("lane").replace_strict(own, default=None), "seed"),
        head=pl.format("head {}", pl.col("head") + 1),
        weight=pl.col("weight").cast(pl.Float64).round(3),
    )


def shift_rows(argument: Argument) -> pl.DataFrame:
    """How much of its weight the head that does so most moves when a carry comes in, one row a model.

    Half the sum of the weights' differences, at the tens: mean patterns of inputs without a carry against those whose
    carry ends there. 0: it looks at the same tokens; 1: at others altogether.
    """
    rows = argument.measured("attention", "add7", ARMS).filter(position=1)
    key = ["lane", "arm", "seed", "spec_id", "moment"]
    apart = (
        pl.col("weight").filter(carry=1).sum().cast(pl.Float64) - pl.col("weight").filter(carry=0).sum()
    ).abs()
    moved = rows.group_by(*key, "layer", "head", "key", maintain_order=True).agg(value=apart / 2)
    heads = moved.group_by(*key, "layer", "head", maintain_order=True).agg(pl.col("value").sum())
    return heads.group_by(key, maintain_order=True).agg(pl.col("value").max())


def patterns(argument: Argument) -> Figure | Text:
    """Dense above MoE, a picture a head; a slider takes the inputs of one carry length."""
    rows = pattern_rows(argument)
    there = [arm for arm in ARMS if arm in set(rows["arm"])]
    if not there:
        return nothing_yet("This measure")
    models = rows["model"].unique(maintain_order=True).to_list()
    tokens = rows.sort("key")["token"].unique(maintain_order=True).to_list()
    longest = int(rows["carry"].max())  # type: ignore[arg-type]
    data = rows.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        "model",
        "head",
        "digit",
        "token",
        "carry",
        "weight",
    )
    carry = alt.param(
        name="carry", value=0, bind=alt.binding_range(min=0, max=longest, step=1, name="Carry length ")
    )
    chart = (
        alt.Chart(data)
        .mark_rect()
        .encode(
            alt.X("token:N", sort=tokens, title=None, axis=alt.Axis(labelAngle=-90, labelFontSize=10)),
            alt.Y("digit:N", sort=[*DIGITS, "overflow"], title=None),
            alt.Color("arm:N", scale=arm_colours(there), legend=None),
            alt.Opacity(
                "weight:Q",
                scale=alt.Scale(domain=[0, 1], range=[0.03, 1]),
                legend=alt.Legend(
                    title="Mean weight",
                    orient="bottom",
                    values=[0, 0.25, 0.5, 0.75, 1],
                    symbolFillColor="currentColor",
                ),
            ),
            tooltip=[alt.Tooltip("arm:N", title="FFN"), "head:N", "digit:N", "token:N", "weight:Q"],
        )
        .properties(width=88, height=72)
        .facet(
            row=alt.Row("arm:N", sort=[arm_label(a) for a in there], title=None),
            column=alt.Column("head:N", title=None),
            spacing=8,
        )
        .transform_filter("datum.model == model && datum.carry == carry")  # above the facets: no empty ones
        .add_params(selected("model", "Model:", {m: m for m in models}), carry)
    )
    counted = rows.group_by("lane").agg(pl.col("seed").n_unique()).sort("lane")
    kinds = ", ".join(
        f"{n} {LANES[lane] if lane == 'own' else argument.profile}" for lane, n in counted.iter_rows()
    )
    return show(
        chart,
        name="patterns",
        caption=(
            "Where each head looks (columns: input digits from the ones on, the end of the input, output digits) "
            "when an output digit is answered (rows), averaged over the inputs of one carry length. The stronger the "
            f"colour, the more; each model by itself, since heads have no common order ({kinds} to choose from): so "
            "without interval."
        ),
        alt="Small heat maps of mean attention weights, a row an arm and a column a head.",
        data=data,
    )
