"""Claims, tests and published numbers in words, for the scoreboard and the chapters."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sparsity_moves.figures.theme import arm_label
from sparsity_moves.figures.words import MOMENT_NAMES, SHORT_NAMES
from sparsity_moves.studies.claims import Part, Side
from sparsity_moves.studies.published import PAPER_MOMENT
from sparsity_moves.studies.statistics import t_interval
from sparsity_moves.studies.verdicts import DRAWS, FIVE

MEASURES = {
    "no_ffn_accuracy": "accuracy without the FFN",
    "mean_ffn_accuracy": "accuracy with the FFN's mean",
    "resample_ffn_accuracy": "accuracy with another input's FFN",
    "no_attention_accuracy": "accuracy without attention",
    "accuracy": "accuracy, intact",
    "attention_share": "attention's share of the logit",
    "router_nmi": "router information",
    "grokked": "share that grokked",
    "grokked_seeds": "seeds of five that grokked",
    "grokked_step": "step of grokking",
    "difference_from_learned": "frozen minus learned",
    "p_value": "p of frozen against learned",
    "fourier_concentration": "Fourier concentration",
    "attention_flip_rate": "answers flipped by attention",
    "ffn_flip_rate": "answers flipped by the FFN",
    "training_time": "training time",
}
UNITS = {"percent": " points", "steps": " steps", "fraction": ""}
_DIGITS = {
    "percent": 1,
    "points": 1,
    "steps": 0,
    "epochs": 0,
    "seeds": 1,
    "fraction": 3,
    "probability": 2,
    "CPU hours": 0,
}


def digits(unit: str) -> int:
    """Digits after the point that a number of this unit is shown with."""
    return _DIGITS.get(unit, 0)


def effect_words(values: list[float], unit: str) -> str:
    """A mean difference with the interval of its t-test: "+39.0 points (36.5 to 41.6)"."""
    places, bounds = digits(unit), t_interval(values)
    mean = signed(sum(values) / len(values), places)
    if bounds is None:
        return f"{mean}{UNITS[unit]}, one pair"
    return f"{mean}{UNITS[unit]} (95\u00a0% CI {signed(bounds[0], places)} to {signed(bounds[1], places)})"


def mean_words(values: list[float], digits: int, interval: Callable[[list[float]], Any] = t_interval) -> str:
    """A mean with its interval, the t-test's unless another is given: "49.1 (46.5 to 51.8)"."""
    bounds, mean = interval(values), plain(sum(values) / len(values), digits)
    if bounds is None:
        return f"{mean}, one seed"
    return f"{mean} ({plain(bounds[0], digits)} to {plain(bounds[1], digits)})"


def number_words(row: dict[str, Any]) -> str:
    """A published number's name: "Addition, MoE: accuracy without the FFN"."""
    of = [SHORT_NAMES.get(row["task"], ""), arm_label(row["arm"]) if row["arm"] else "", row["setting"]]
    what = MEASURES[row["measure"]] + (f", {row['detail']}" if row["detail"] else "")
    return f"{', '.join(filter(None, of))}: {what}".removeprefix(": ")


def runs_words(part: Part, profile: str) -> str:
    """Which runs a test is over."""
    every = [each for side in part.sides for each in (side, side.over) if each]
    moments = {side.moment or PAPER_MOMENT[part.task] for side in every if not side.chance}
    arms = " and ".join(
        dict.fromkeys(side.arm + (f" {side.setting}" if side.setting else "") for side in every)
    )
    return f"{part.task} {arms}, {' and '.join(sorted(moments))}, {profile} profile"


def sides(part: Part) -> str:
    """What a test sets against what: "MoE minus Dense"."""
    one, other = (side_words(side) for side in part.sides)
    return f"{one} minus {other}" if part.kind == "more" else f"{one} against {other}"


def side_words(side: Side) -> str:
    """One side of a test: "MoE at the last step", "MoE over Dense at the last step"."""
    if side.over is not None:
        one = side_words(replace(side, over=None, moment=""))
        return f"{one} over {side_words(side.over)}"
    if side.chance:
        return f"“{side.chance}”"
    at = {"": "", "final": " at the last step"}.get(
        side.moment, f" at {MOMENT_NAMES.get(side.moment, side.moment)}"
    )
    told = ", ".join(filter(None, [side.setting, side.detail]))
    return arm_label(side.arm) + (f" ({told})" if told else "") + at


def signed(value: float | np.ndarray, digits: int) -> str:
    """A number with its sign."""
    return ("" if value < 0 else "+") + plain(value, digits)


def plain(value: float | np.ndarray, digits: int) -> str:
    """A number with so many digits after the point, and its thousands apart."""
    return f"{value:,.{digits}f}".replace("-", "−").replace(",", "\u202f")


def draws_words(held: int | None, pairs: int) -> str:
    """In how many draws of five seeds a claim holds, or why five cannot be drawn."""
    if held is None:
        return f"Five seeds cannot be drawn: it has {pairs} pair{'s' if pairs != 1 else ''}."
    if pairs == FIVE:
        return "It has just five pairs: there is one draw of five."
    return f"Of {DRAWS} random draws of five of these {pairs} seeds, {held} show it."
