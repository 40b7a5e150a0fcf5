"""Where ours and the published numbers differ, and which of those are not measured yet: two tables."""

from collections.abc import Sequence

import polars as pl

from sparsity_moves.figures.claim_words import MEASURES, digits, mean_words, number_words, plain, signed
from sparsity_moves.figures.prose import hover
from sparsity_moves.studies.statistics import interval, of_few
from sparsity_moves.studies.verdicts import FAILED, FEWEST, FIVE, PARTLY, UNDECIDED, UNMEASURED, Number


def apart_table(numbers: Sequence[Number]) -> pl.DataFrame:
    """Numbers whose interval is not wholly within the margin: by how much ours lie apart, and why they may."""
    rows = []
    for number in numbers:
        verdict, row = number.verdict(), number.row
        if verdict not in (FAILED, PARTLY, UNDECIDED):
            continue
        values, places = [*number.values.values()], digits(row["unit"])
        rows.append(
            {
                "number": number_words(row),
                "published": hover(
                    f"{row['value']:.{places}f}", f"{row['source_text']}, margin ± {number.margin:g}"
                ),
                "ours": hover(
                    mean_words(values, places, interval), f"n = {len(values)} seeds, at {number.moment}"
                ),
                "ours − published": signed(sum(values) / len(values) - row["value"], places),
                "verdict": verdict,
                "why": " ".join(filter(None, [_luck(values, row["value"], places), number.claim.apart])),
            }
        )
    names = ("number", "published", "ours", "ours − published", "verdict", "why")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String))


def _luck(values: list[float], published: float, places: int) -> str:
    """Whether five of our seeds would give the published value."""
    if len(values) < FEWEST:
        return "One seed has no interval."
    if len(values) <= FIVE:
        return ""
    low, high = of_few(values, FIVE)
    within = "with" if low <= published <= high else "without"
    between = f"{plain(low, places)} and {plain(high, places)}"
    return f"Means of five of our seeds lie between {between}, {within} the published value."


def unmeasured_table(numbers: Sequence[Number]) -> pl.DataFrame:
    """Numbers that the tables do not give, counted by measure and reason."""
    rows = [
        {"measure": MEASURES[number.row["measure"]], "why not": number.why}
        for number in numbers
        if number.verdict() == UNMEASURED
    ]
    schema = {"measure": pl.String, "why not": pl.String}
    return (
        pl.DataFrame(rows, schema=schema)
        .group_by("measure", "why not", maintain_order=True)
        .agg(pl.len().cast(pl.Int64).alias("numbers"))
    )
