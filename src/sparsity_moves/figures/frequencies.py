"""Waves in modular addition: of neurons, components, weights and logits."""

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.grouped import Choice, grouped
from sparsity_moves.figures.patterns import SHOWN
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.strips import LANES, nothing_yet, selected
from sparsity_moves.figures.theme import arm_colours, arm_label
from sparsity_moves.names import MOMENTS
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.published import best, published

ARMS = ("dense", "moe", "glu", "glu_bilinear", "moe_glu")
TASK = "modular_addition"
DETAILS = {"per neuron": "all neurons", "top principal component": "first component", "weights": "weights"}


def concentration_rows(argument: Argument) -> pl.DataFrame:
    """Concentrations by both conventions, of neurons, of the strongest component, of a GLU's quadratic forms.

    The paper looks at the best checkpoint; where its parameters were not kept, this is the one at which it grokked.
    """
    rows = argument.measured("fourier", TASK, ARMS, MOMENTS)
    key = ["lane", "arm", "seed", "spec_id", "moment"]
    site = pl.col("site")
    of_experts = pl.col("expert").is_not_null()
    of_a_layer = pl.col("expert").count().over(*key, "site") == 0  # an MoE's weights are those of its experts
    chosen = (
        site.is_in(["neurons", "live_neurons"])
        | ((site == "components") & (pl.col("index") == 0))
        | ((site == "weights") & (of_experts | of_a_layer))
    )
    names = {
        "neurons": "all neurons",
        "live_neurons": "live neurons",
        "components": "first component",
        "weights": "weights",
    }
    rows = rows.filter(chosen).with_columns(
        part=site.replace_strict(names, default=None, return_dtype=pl.String)
    )
    long = rows.unpivot(
        ["full", "paired"], index=[*key, "part"], variable_name="convention", value_name="value"
    )
    return long.group_by([*key, "part", "convention"], maintain_order=True).agg(pl.col("value").mean())


def heard_rows(argument: Argument) -> pl.DataFrame:
    """Of each model's neurons, the share (%) that are heard in the output."""
    rows = argument.measured("fourier", TASK, ARMS, MOMENTS).filter(pl.col("expert").is_null())
    neurons, live = (
        pl.col("count").filter(pl.col("site") == name).sum() for name in ("neurons", "live_neurons")
    )
    key = ["lane", "arm", "seed", "spec_id", "moment"]
    return (
        rows.group_by(key, maintain_order=True)
        .agg(neurons.alias("all"), value=100 * live / neurons)
        .filter(pl.col("all") > 0)
    )


def fourier(argument: Argument) -> Figure | Text:
    """How much of one frequency."""
    beside = best(published()).filter(
        pl.col("detail").is_in(list(DETAILS)),
        task=TASK,
        measure="fourier_concentration",
        setting="convention=full",
    )
    beside = beside.with_columns(
        part=pl.col("detail").replace_strict(DETAILS, default=None), convention=pl.lit("full")
    )
    lines = pl.DataFrame(
        {"convention": ["full", "paired"], "value": [0.5, 1.0], "line": ["the most there can be"] * 2}
    )
    return grouped(
        argument,
        concentration_rows(argument),
        name="fourier",
        caption="Share of the strongest frequency of a + b, on modular addition; means over a layer's neurons.",
        title="Fourier concentration",
        parts=("all neurons", "live neurons", "first component", "weights"),
        arms=ARMS,
        choices={
            "convention": Choice(
                "Counted:",
                {"full": "one of a frequency's two halves, as published", "paired": "both halves together"},
            )
        },
        domain=(0, 1),
        published=beside.select("arm", "part", "value", "source_text", "convention"),
        lines=lines,
    )


def neuron_rows(argument: Argument) -> pl.DataFrame:
    """How many neurons of each model have which concentration, live and silent apart."""
    rows = argument.measured("neurons", TASK, ARMS, MOMENTS)
    rows = rows.with_columns(pl.col("seed").rank("dense").over("lane", "arm").alias("place"))
    rows = rows.filter(
        pl.col("place") <= pl.col("lane").replace_strict(SHOWN, default=0, return_dtype=pl.Int64)
    )
    own = {
        lane: words if lane == "own" or argument.profile == "paper" else argument.profile
        for lane, words in LANES.items()
    }
    model = pl.format(
        "{}, seed {}", pl.col("lane").replace_strict(own, default=None, return_dtype=pl.String), "seed"
    )
    heard = pl.when("live").then(pl.lit("live")).otherwise(pl.lit("not heard in the output"))
    bins = (pl.col("full").clip(0, 0.4999) * 40).floor() / 40
    return (
        rows.with_columns(model=model, neuron=heard, start=bins.cast(pl.Float64).round(3))
        .group_by("lane", "arm", "seed", "model", "start", "neuron", maintain_order=True)
        .agg(pl.len().alias("neurons"))
        .with_columns(end=(pl.col("start") + 0.025).round(3))
        .sort("lane", "seed", "arm", "start", "neuron")
        .drop("seed")
    )


def neurons(argument: Argument) -> Figure | Text:
    """Every neuron of one model: is a low mean made by neurons that do not speak?"""
    rows = neuron_rows(argument)
    there = [arm for arm in ARMS if arm in set(rows["arm"])]
    if not there:
        return nothing_yet("This measure")
    models = rows["model"].unique(maintain_order=True).to_list()
    data = rows.drop("lane").with_columns(pl.col("arm").map_elements(arm_label, return_dtype=pl.String))
    chart = (
        alt.Chart(data)
        .mark_bar(orient="vertical")
        .encode(
            alt.X(
                "start:Q", title="Fourier concentration (at most one half)", scale=alt.Scale(domain=[0, 0.5])
            ),
            alt.X2("end:Q"),
            alt.Y("neurons:Q", stack="zero", title="Neurons", axis=alt.Axis(tickCount=3)),
            alt.Color("arm:N", scale=arm_colours(there), legend=None),
            alt.Opacity(
                "neuron:N",
                sort=["live", "not heard in the output"],
                scale=alt.Scale(domain=["live", "not heard in the output"], range=[1, 0.3]),
                legend=alt.Legend(title=None, orient="top", symbolFillColor="currentColor"),
            ),
            tooltip=[alt.Tooltip("arm:N", title="FFN"), "neuron:N", "start:Q", "end:Q", "neurons:Q"],
        )
        .properties(width=420, height=64)
        .facet(
            row=alt.Row(
                "arm:N",
                sort=[arm_label(a) for a in there],
                title=None,
                header=alt.Header(labelAngle=0, labelOrient="top", labelAnchor="start"),
            ),
            spacing=6,
        )
        .resolve_scale(y="independent")
        .transform_filter("datum.model == model")  # above the facets: no panel for an arm that a model lacks
        .add_params(selected("model", "Model:", {m: m for m in models}))
    )
    return show(
        chart,
        name="neurons",
        caption=(
            "Hidden units of single models by their Fourier concentration. Pale: units whose part of the output is "
            "under a hundredth of the strongest unit's. One model at a time, so there is no interval."
        ),
        alt="Histograms, one an arm, of neurons over Fourier concentration, live and silent neurons apart.",
        data=data,
    )


def progress_rows(argument: Argument) -> pl.DataFrame:
    """Loss as it is, with the key frequencies alone, and without them."""
    names = {"loss": "as it is", "restricted_loss": "key frequencies alone", "excluded_loss": "without them"}
    rows = argument.measured("progress", TASK, ARMS, MOMENTS)
    index = ["lane", "arm", "seed", "spec_id", "moment", "split", "modulus", "key_frequencies"]
    long = rows.unpivot(list(names), index=index, variable_name="part", value_name="value")
    return long.with_columns(
        pl.col("part").replace_strict(names, default=None),
        pl.col("value").cast(pl.Float64).clip(lower_bound=1e-9),
    )


def restricted(argument: Argument) -> Figure | Text:
    """Whether a few waves are the whole computation."""
    rows = progress_rows(argument)
    guesses = rows.select("lane", "modulus").unique(maintain_order=True)
    lines = guesses.with_columns(value=pl.col("modulus").log(), line=pl.lit("a guess"))
    return grouped(
        argument,
        rows,
        name="restricted-loss",
        caption=(
            "Cross-entropy on modular addition when the logits keep their key frequencies alone, and when these are "
            "taken out."
        ),
        title="Cross-entropy",
        parts=("as it is", "key frequencies alone", "without them"),
        arms=ARMS,
        choices={"split": Choice("Pairs", {"test": "held out", "train": "trained on"})},
        logarithmic=True,
        lines=lines.drop("modulus"),
    )
