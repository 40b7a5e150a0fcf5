"""Where in the answer the shift is, and which heads carry it."""

import polars as pl

from sparsity_moves.figures.book_renderer import Figure
from sparsity_moves.figures.grouped import FOUR, Choice, digit_names, grouped
from sparsity_moves.figures.prose import Text
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.published import best, published

COMPONENTS = {"ffn": "the FFN", "attention": "attention"}
HOW = {"zero": "set to zero", "mean": "its mean over inputs", "resample": "another input's"}
RANKS = ("strongest head", "second", "third", "weakest")


def digit_rows(argument: Argument) -> pl.DataFrame:
    """Accuracy (%) without a component, by output digit and by carry length."""
    rows = argument.measured("ablation", "add7", FOUR).filter(
        pl.col("component").is_in(list(COMPONENTS)), pl.col("operation").is_null()
    )
    of_digit = pl.col("carry").is_null() & (pl.col("position") <= pl.col("digits"))
    of_carry = pl.col("position").is_null() & (pl.col("carry") <= pl.col("digits"))
    rows = rows.filter(of_digit | of_carry)
    part = pl.when(pl.col("carry").is_null()).then(digit_names()).otherwise(pl.format("carry {}", "carry"))
    return rows.with_columns(part=part, value=100 * pl.col("accuracy").cast(pl.Float64))


def by_digit(argument: Argument) -> Figure | Text:
    """What is left of each digit, and of each carry length, without a component."""
    parts = ("ones", "tens", "hundreds", "overflow", *(f"carry {length}" for length in range(4)))
    beside = best(published()).filter(task="add7", measure="no_ffn_accuracy", setting="")
    kind = pl.col("detail").str.split("=")
    beside = beside.filter(pl.col("detail").str.contains("^(digit|carry_length)=")).with_columns(
        part=pl.when(kind.list.first() == "digit")
        .then(kind.list.last())
        .otherwise(pl.format("carry {}", kind.list.last())),
        component=pl.lit("ffn"),
        how=pl.lit("zero"),
    )
    return grouped(
        argument,
        digit_rows(argument),
        name="by-digit",
        caption=(
            "Accuracy without a component by output digit and by carry length, on addition with carry. Few inputs "
            "have the longest carry: as many as the addend says, 993 to 999 of three digits."
        ),
        title="Accuracy left (%)",
        parts=parts,
        choices={"component": Choice("Taken away:", COMPONENTS), "how": Choice("and replaced by", HOW)},
        domain=(0, 100),
        published=beside.select("arm", "part", "value", "source_text", "component", "how"),
    )


def head_rows(argument: Argument) -> pl.DataFrame:
    """Every head by its rank within its model: what its loss costs, how much it writes, and what that is worth."""
    key = ["lane", "arm", "seed", "spec_id", "moment"]
    ablation = argument.measured("ablation", "add7", FOUR).filter(
        pl.col("position").is_null(), pl.col("operation").is_null(), pl.col("carry").is_null()
    )
    intact = ablation.filter(component="none").select(*key, pl.col("accuracy").alias("intact"))
    lost = ablation.filter(component="head", how="zero").join(intact, on=key)
    cost = 100 * (pl.col("intact") - pl.col("accuracy")).cast(pl.Float64)
    tables = [lost.select(*key, "head", pl.lit("cost").alias("measure"), cost.alias("value"))]
    written = argument.measured("attribution", "add7", FOUR).filter(part="head").rename({"index": "head"})
    for measure in ("norm", "margin"):
        mean = written.group_by([*key, "head"], maintain_order=True).agg(
            pl.col(measure).cast(pl.Float64).mean()
        )
        tables.append(
            mean.select(*key, "head", pl.lit(measure).alias("measure"), pl.col(measure).alias("value"))
        )
    rows = pl.concat(tables, how="vertical_relaxed")
    rank = pl.col("value").rank("ordinal", descending=True).over([*key, "measure"]) - 1
    names = dict(enumerate(RANKS))
    return rows.with_columns(part=rank.replace_strict(names, default=None, return_dtype=pl.String))


def heads(argument: Argument) -> Figure | Text:
    """Is it one head's work, or all heads'?"""
    return grouped(
        argument,
        head_rows(argument),
        name="heads",
        caption="Heads of each model in the order of the number shown, on addition with carry.",
        title="Points, length or logit of a head",
        parts=RANKS,
        choices={
            "measure": Choice(
                "Shown:",
                {
                    "cost": "points of accuracy lost without it",
                    "norm": "length of what it writes",
                    "margin": "what it adds to the correct logit, above the mean logit",
                },
            )
        },
    )
