"""Causal evidence and what can be read: patching, logit attribution and linear probes."""

import polars as pl

from sparsity_moves.figures.book_renderer import Figure
from sparsity_moves.figures.grouped import FOUR, Choice, digit_names, grouped
from sparsity_moves.figures.prose import Text
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.published import best, published

SENDERS = {"attention": "attention's output", "ffn": "the FFN's output"}
MATCHED = {"no": "may differ (as published)", "yes": "is the same"}
DIRECTIONS = {"both": "both ways", "1": "into an input that carries", "2": "into an input that does not"}
READINGS = {
    "flips to the donor's answer, both ways": ("flip_rate", [1, 2]),
    "flips to the donor's answer, into inputs that carry": ("flip_rate", [1]),
    "any change of the answer, both ways": ("change_rate", [1, 2]),
    "any change of the answer, into inputs that carry": ("change_rate", [1]),
}
"""What a published flip rate may count: a column of our table, and recipients' operations."""
OUTPUT_DIGITS = ("ones", "tens", "hundreds", "overflow")


def patching_rows(argument: Argument) -> pl.DataFrame:
    """Flip rates by component, digit, direction and whether the input digit is matched."""
    rows = argument.measured("patching", "add7", FOUR)
    rows = rows.with_columns(
        part=digit_names(),
        digit=pl.col("matched").replace_strict(
            {True: "yes", False: "no"}, default=None, return_dtype=pl.String
        ),
        direction=pl.col("operation").cast(pl.String),
        value=pl.col("flip_rate").cast(pl.Float64),
    )
    key = ["lane", "arm", "seed", "spec_id", "moment", "part", "component", "digit"]
    both = (
        rows.group_by(key, maintain_order=True)
        .agg(pl.col("value").mean())
        .with_columns(direction=pl.lit("both"))
    )
    return pl.concat([rows.select(both.columns), both])


def patching(argument: Argument) -> Figure | Text:
    """Whether the answer goes with a component's output."""
    beside = _published_flips().with_columns(digit=pl.lit("no"), direction=pl.lit("both"))
    return grouped(
        argument,
        patching_rows(argument),
        name="patching",
        caption="Share of pairs in which the answer flips to the donor's, on addition with carry.",
        title="Flip rate",
        parts=OUTPUT_DIGITS[1:],
        choices={
            "component": Choice("Patched:", SENDERS),
            "digit": Choice("the donor's input digit", MATCHED),
            "direction": Choice("patched", DIRECTIONS),
        },
        domain=(0, 1),
        published=beside.select("arm", "part", "value", "source_text", "component", "digit", "direction"),
    )


def readings(argument: Argument) -> pl.DataFrame:
    """How far ours are from the published flip rates, by what may have been counted: a row a reading.

    Of each output digit the mean absolute difference, over layers and both components, at full scale where there is
    such a run; digits not matched, as published.
    """
    ours = argument.measured("patching", "add7", FOUR).filter(~pl.col("matched"), lane="main")
    ours = ours.with_columns(part=digit_names())
    theirs = _published_flips()
    found = []
    for words, (column, directions) in READINGS.items():
        means = ours.filter(pl.col("operation").is_in(directions)).group_by("arm", "component", "part")
        both = theirs.join(means.agg(pl.col(column).mean()), on=["arm", "component", "part"])
        apart = dict(both.group_by("part").agg((pl.col(column) - pl.col("value")).abs().mean()).iter_rows())
        found.append({"counted": words} | {part: apart.get(part) for part in OUTPUT_DIGITS[1:]})
    return pl.DataFrame(found, schema={"counted": pl.String} | dict.fromkeys(OUTPUT_DIGITS[1:], pl.Float64))


def nearest(distances: pl.DataFrame) -> dict[str, str]:
    """Of each output digit the reading that comes nearest to the published rates, where there are runs."""
    return {
        part: distances.sort(part)["counted"][0]
        for part in OUTPUT_DIGITS[1:]
        if distances[part].null_count() == 0
    }


def _published_flips() -> pl.DataFrame:
    """The published flip rates, by `arm`, `component` and `part`."""
    rates = [f"{component}_flip_rate" for component in SENDERS]
    return (
        best(published())
        .filter(pl.col("measure").is_in(rates), task="add7")
        .with_columns(
            part=pl.col("detail").str.strip_prefix("digit="),
            component=pl.col("measure").str.strip_suffix("_flip_rate"),
        )
    )


def attribution_rows(argument: Argument) -> pl.DataFrame:
    """What embedding, attention and FFN add to the correct logit, and how much they write, by output digit."""
    wholes = {"embedding": "embedding", "attention": "attention", "ffn": "FFN", "residual": "all together"}
    rows = argument.measured("attribution", "add7", FOUR).filter(pl.col("part").is_in(list(wholes)))
    rows = rows.with_columns(digit=digit_names(), part=pl.col("part").replace_strict(wholes, default=None))
    long = rows.unpivot(
        ["margin", "norm"],
        index=["lane", "arm", "seed", "spec_id", "moment", "part", "digit"],
        variable_name="measure",
        value_name="value",
    )
    every = (
        long.group_by([c for c in long.columns if c not in ("digit", "value")], maintain_order=True)
        .agg(pl.col("value").mean())
        .with_columns(digit=pl.lit("all"))
    )
    return pl.concat([long, every.select(long.columns)])


def attribution(argument: Argument) -> Figure | Text:
    """Whose writing is the answer?"""
    return grouped(
        argument,
        attribution_rows(argument),
        name="attribution",
        caption=(
            "What each component writes, averaged over inputs, on addition with carry. The first three sum "
            "exactly to the last, but for their lengths."
        ),
        title="Logit or length",
        parts=("embedding", "attention", "FFN", "all together"),
        choices={
            "measure": Choice(
                "Shown:",
                {
                    "margin": "added to the correct logit, above the mean logit",
                    "norm": "length in the residual stream",
                },
            ),
            "digit": Choice("of", {"all": "all digits", **{d: f"the {d}" for d in OUTPUT_DIGITS}}),
        },
    )


def probe_rows(argument: Argument) -> pl.DataFrame:
    """Probes' accuracy (%) by recipe, place and digit; the place `position` knows the digit's place alone."""
    sites = {"embedding": "embedding", "attention": "attention", "ffn": "FFN", "residual": "whole stream"}
    rows = argument.measured("probes", "add7", FOUR)
    digit = pl.when(pl.col("position").is_null()).then(pl.lit("all")).otherwise(digit_names())
    return rows.with_columns(
        part=pl.col("site").replace(sites), digit=digit, value=100 * pl.col("accuracy").cast(pl.Float64)
    )


def probes(argument: Argument) -> Figure | Text:
    """What a linear read-out of the operation finds, beside what the position alone says."""
    rows = probe_rows(argument)
    baseline = rows.filter(part="position").group_by("lane", "recipe", "digit", maintain_order=True)
    lines = baseline.agg(pl.col("value").mean().round(2)).with_columns(line=pl.lit("the position alone"))
    return grouped(
        argument,
        rows,
        name="probes",
        caption=(
            "Accuracy of a linear probe for the operation (+7, +1, +0), on addition with carry. Dashed: what a "
            "predictor scores that knows the output digit's place and nothing else."
        ),
        title="Probe's accuracy (%)",
        parts=("embedding", "attention", "FFN", "whole stream"),
        choices={
            "recipe": Choice(
                "Trained by",
                {"paper": "the paper's recipe, unseen inputs", "code": "the code's recipe, the same inputs"},
            ),
            "digit": Choice("for", {"all": "all digits", **{d: f"the {d}" for d in OUTPUT_DIGITS}}),
        },
        domain=(40, 100),
        lines=lines,
    )
