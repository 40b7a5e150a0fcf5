"""A worked example: what one stored model still gets right, digit by digit, without its FFN."""

from collections.abc import Mapping

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.theme import arm_colours, arm_label, arm_shapes

DIGITS = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands")
TAKEN = {"intact": "intact", "no": "zero", "mean": "mean", "resample": "resample"}


def digit_names(digits: int) -> list[str]:
    """The output digits of a sum, ones first; the last is the overflow."""
    return [*DIGITS[:digits], "overflow"]


def digit_accuracy(
    shares: Mapping[tuple[str, str], list[float]], *, seed: int, chance: list[float], profile: str
) -> Figure:
    """Accuracy at each output digit of one model an arm, intact and with its FFN taken away.

    Args:
        shares: by (arm, how it was taken away), the accuracy at each output digit.
        seed: of the models.
        chance: accuracy of the most frequent digit, place by place.
        profile: that trained them.
    """
    names = digit_names(len(chance) - 1)
    rows = pl.DataFrame(
        [
            {"arm": arm_label(arm), "ffn": TAKEN[how], "digit": name, "percent": round(100 * share, 2)}
            for (arm, how), values in shares.items()
            for name, share in zip(names, values, strict=True)
        ]
    )
    arms = list(dict.fromkeys(arm for arm, _ in shares))
    pick = alt.param(
        name="taken",
        value="zero",
        bind=alt.binding_select(
            options=list(TAKEN.values()),
            labels=["intact", "set to zero", "its mean", "taken from another input"],
            name="FFN ",
        ),
    )
    x = alt.X("digit:N", sort=names, title="Output digit", axis=alt.Axis(labelAngle=0))
    y = alt.Y("percent:Q", title="Right (%)", scale=alt.Scale(domain=[0, 100]))
    lines = alt.Chart(pl.DataFrame({"digit": names, "percent": [round(100 * c, 2) for c in chance]}))
    chart = alt.layer(
        lines.mark_tick(thickness=2, size=90, color="currentColor", strokeDash=[5, 4]).encode(
            x, y, tooltip=[alt.Tooltip("percent:Q", title="most frequent digit (%)")]
        ),
        alt.Chart(rows)
        .transform_filter("datum.ffn == taken")
        .mark_point(size=110, filled=True)
        .encode(
            x,
            y,
            alt.XOffset("arm:N", sort=None),
            alt.Color("arm:N", scale=arm_colours(arms), legend=alt.Legend(title=None, orient="top")),
            alt.Shape("arm:N", scale=arm_shapes(arms)),
            tooltip=["arm:N", "digit:N", alt.Tooltip("percent:Q", title="right (%)")],
        ),
    ).properties(width=460, height=220)
    zero = {arm: dict(zip(names, shares[arm, "no"], strict=True)) for arm in arms}
    return show(
        chart.add_params(pick),
        name="worked-example",
        caption=(
            f"One model each (seed {seed}, {profile} profile, last step): accuracy at every output digit over all "
            f"inputs, teacher-forced. Dashed: always the most frequent digit. One seed, so no interval."
        ),
        alt="Accuracy by output digit without the FFN. "
        + " ".join(
            f"{arm_label(arm)}: "
            + ", ".join(f"{name} {100 * share:.0f} %" for name, share in by.items())
            + "."
            for arm, by in zero.items()
        ),
        data=rows,
    )
