"""Where ours and the published numbers differ, and which of those are not measured yet: two tables."""

from collections.abc import Sequence
from string import ascii_lowercase

import polars as pl

from sparsity_moves.figures.claim_words import MEASURES, digits, mean_words, number_words, plain
from sparsity_moves.figures.prose import hover
from sparsity_moves.studies.statistics import interval, of_few
from sparsity_moves.studies.verdicts import FAILED, FEWEST, FIVE, PARTLY, UNDECIDED, UNMEASURED, Number


def apart_table(numbers: Sequence[Number]) -> tuple[pl.DataFrame, list[str]]:
    """Numbers whose interval is not wholly within the margin: ours beside them, and why they may differ.

    The reasons are returned beside the table, whose column `why` has the letter of each.
    """
    apart = [number for number in numbers if number.verdict() in (FAILED, PARTLY, UNDECIDED)]
    reasons = list(dict.fromkeys(number.claim.apart for number in apart if number.claim.apart))
    rows = []
    for number in apart:
        row, values, places = number.row, [*number.values.values()], digits(number.row["unit"])
        between, within = _luck(values, row["value"], places)
        rows.append(
            {
                "number": number_words(row),
                "published": hover(
                    f"{row['value']:.{places}f}", f"{row['source_text']}, margin ± {number.margin:g}"
                ),
                "ours": hover(
                    mean_words(values, places, interval).replace(" to ", "\u00a0to\u00a0"),
                    f"n = {len(values)} seeds, at {number.moment}",
                ),
                "verdict": number.verdict(),
                "five of ours": between,
                "hold it": within,
                "why": ascii_lowercase[reasons.index(number.claim.apart)] if number.claim.apart else "",
            }
        )
    names = ("number", "published", "ours", "verdict", "five of ours", "hold it", "why")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String)), reasons


def reasons_list(reasons: Sequence[str]) -> str:
    """What the letters of the table say."""
    return "\n".join(
        f"- **{letter}**: {reason}" for letter, reason in zip(ascii_lowercase, reasons, strict=False)
    )


def _luck(values: list[float], published: float, places: int) -> tuple[str, str]:
    """Between what the means of five of our seeds lie, and whether the published value does too."""
    if len(values) < FEWEST:
        return "one seed", ""
    if len(values) <= FIVE:
        return "", ""
    low, high = of_few(values, FIVE)
    within = "yes" if low <= published <= high else "no"
    return f"{plain(low, places)} to {plain(high, places)}", within


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
