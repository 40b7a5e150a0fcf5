"""The shift taken apart: parts that sum, by training step; and the paper's two causes, alone and together."""

from collections.abc import Iterator
from itertools import pairwise

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.claim_words import signed
from sparsity_moves.figures.prose import Text, hover
from sparsity_moves.figures.strips import LANES, nothing_yet
from sparsity_moves.figures.summary import METHOD, Summary, of_each, summary
from sparsity_moves.figures.theme import arm_style
from sparsity_moves.figures.words import MOMENT_NAMES, profile, seeds
from sparsity_moves.studies.argument import Argument

PATH = {
    "dense": "Dense",
    "narrow": "less width a token",
    "moe_hash_context": "experts, dealt out at random",
    "moe_frozen": "dealt out by a fixed router",
    "moe": "which is trained",
}
"""From the dense layer to the MoE, one change at a time; each is named by what it adds."""
LOOKS = 50
TAKEN = {
    f"{MOMENT_NAMES['first_best']}, zero": ("first_best", "no_ffn_accuracy"),
    f"{MOMENT_NAMES['final']}, zero": ("final", "no_ffn_accuracy"),
    f"{MOMENT_NAMES['final']}, mean": ("final", "mean_ffn_accuracy"),
    f"{MOMENT_NAMES['final']}, another input's": ("final", "resample_ffn_accuracy"),
}
"""When, and what is put in the FFN's place."""


def decomposition(argument: Argument, task: str = "add7") -> Figure | Text:
    """A waterfall from the dense layer's no-FFN accuracy to the MoE's; a slider moves through training."""
    curves = argument.curves(task, PATH)
    path = [arm for arm in PATH if arm in set(curves["arm"])]
    if len(path) < 3 or "moe" not in path:
        return nothing_yet("This decomposition")
    steps = curves["step"].unique().sort().to_list()
    steps = steps[:: max(1, len(steps) // LOOKS)]
    data = pl.DataFrame([row for bars in _bars(curves, path, steps) for row in bars])
    own = _beside(argument, task, path, steps)
    start = argument.moments(task, ["moe"]).filter(moment="first_best")["step"].mean()
    nearest = min(steps, key=lambda step: abs(step - float(start or 0)))  # type: ignore[arg-type]
    spacing = steps[1] - steps[0] if len(steps) > 1 else 1
    slider = alt.param(
        name="at_step",
        value=nearest,
        bind=alt.binding_range(min=steps[0], max=steps[-1], step=spacing, name="Training step "),
    )
    order = data.filter(step=steps[0])["part"].to_list()
    here = alt.Chart(data).transform_filter("datum.step == at_step")
    y = alt.Y("part:N", sort=order, title=None, axis=alt.Axis(labelLimit=220))
    tips = [
        alt.Tooltip("part:N", title="part"),
        alt.Tooltip("size:Q", title="points", format="+.1f"),
        alt.Tooltip("low:Q", title="95 % CI from", format="+.1f"),
        alt.Tooltip("high:Q", title="to", format="+.1f"),
        alt.Tooltip("n:Q", title="pairs"),
        alt.Tooltip("runs:N", title="runs"),
    ]
    x = alt.X("from:Q", title="Accuracy without the FFN (%)", scale=alt.Scale(domain=[0, 100]))
    chart = alt.layer(
        here.mark_bar(height=18, opacity=0.85).encode(
            x, alt.X2("to:Q"), y, alt.Color("colour:N", scale=None), tooltip=tips
        ),
        here.mark_rule(strokeWidth=2).encode(alt.X("left:Q"), alt.X2("right:Q"), y, tooltip=tips),
        here.transform_calculate(edge="max(datum.right, datum.to)")
        .mark_text(align="left", dx=6)
        .encode(alt.X("edge:Q"), y, text="words:N"),
    )
    if len(own):
        chart += (
            alt.Chart(own)
            .transform_filter("datum.step == at_step")
            .mark_bar(height=26, filled=False, strokeWidth=1.5, strokeDash=[3, 2])
            .encode(x, alt.X2("to:Q"), y, stroke=alt.value("currentColor"), tooltip=[*tips, "own_step:Q"])
        )
    chart = chart.properties(width=430, height=alt.Step(32))
    moments = argument.moments(task, path)
    at = data.filter(step=nearest)
    return show(
        chart.add_params(slider),
        name="decomposition",
        caption=(
            "From the dense layer to the MoE in single changes. Each coloured bar is one part of the shift, the mean "
            f"of its differences seed by seed, so that the parts sum to the whole; thin lines: {METHOD} "
            f"({seeds(moments)}, {profile(moments)}). The slider opens near the mean of the paper's checkpoints, "
            "which are not at one step."
            + (
                " Dashed outlines: *this computer*, shorter runs, trained where these pages were built, after the "
                "same share of training."
                if len(own)
                else ""
            )
        ),
        alt="A waterfall chart. At step "
        + f"{nearest}: "
        + ", ".join(f"{part} {words}" for part, words in at.select("part", "words").iter_rows())
        + ".",
        data=pl.concat(
            [
                rows.drop("colour", "words").with_columns(lane=pl.lit(LANES[lane]))
                for lane, rows in (("main", data), ("own", own))
                if len(rows)
            ],
            how="diagonal",
        ),
    )


def _beside(argument: Argument, task: str, path: list[str], steps: list[int]) -> pl.DataFrame:
    """The bars of the reader's own runs at the same shares of their training; no rows where he lacks an arm."""
    curves = argument.curves(task, path, own=True)
    if set(curves["arm"]) != set(path):
        return pl.DataFrame()
    looks = curves["step"].unique().sort().to_list()
    near = [min(looks, key=lambda look: abs(look / looks[-1] - step / steps[-1])) for step in steps]
    bars = zip(steps, near, _bars(curves, path, near), strict=True)
    return pl.DataFrame([bar | {"step": step, "own_step": own} for step, own, each in bars for bar in each])


def _bars(curves: pl.DataFrame, path: list[str], steps: list[int]) -> Iterator[list[dict[str, object]]]:
    """The waterfall's bars at each step: the first arm, what each change adds, the last arm."""
    groups = [group for step in steps for group in _values(curves.filter(step=step), path)]
    found = iter(of_each(groups))
    for step in steps:
        first, *changes, last = (next(found) for _ in range(len(path) + 1))
        rows = [_bar("the dense layer", path[0], step, 0.0, first, whole=True)]
        reached = first.mean
        for (before, after), change in zip(pairwise(path), changes, strict=True):
            rows.append(
                _bar(f"+ {PATH[after]}", after, step, reached, change, runs=f"{after} minus {before}")
            )
            reached += change.mean
        yield [*rows, _bar("= the MoE", path[-1], step, 0.0, last, whole=True)]


def _values(curves: pl.DataFrame, path: list[str]) -> list[list[float]]:
    """In percent, over the seeds that all arms have: the first arm's, each change's, the last arm's."""
    by = {
        arm: dict(curves.filter(arm=arm).select("seed", pl.col("no_ffn_accuracy") * 100).iter_rows())
        for arm in path
    }
    common = sorted(set.intersection(*(set(values) for values in by.values())))
    changes = [[by[after][seed] - by[before][seed] for seed in common] for before, after in pairwise(path)]
    return [[by[path[0]][seed] for seed in common], *changes, [by[path[-1]][seed] for seed in common]]


def _bar(
    part: str, arm: str, step: int, start: float, found: Summary, *, runs: str = "", whole: bool = False
) -> dict[str, object]:
    low, high = (found.mean if bound is None else bound for bound in (found.low, found.high))
    return {
        "part": part,
        "step": step,
        "from": round(start, 2),
        "to": round(start + found.mean, 2),
        "left": round(start + low, 2),
        "right": round(start + high, 2),
        "size": round(found.mean, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "n": found.n,
        "runs": runs or arm,
        "words": f"{found.mean:.1f}" if whole else signed(found.mean, 1),
        "colour": arm_style(arm).colour,
    }


def two_by_two(argument: Argument, task: str = "add7") -> pl.DataFrame:
    """Width and experts, each alone, both, and what both do beyond their sum, in points.

    At the paper's checkpoint and at the last step, there by what replaces the FFN's output.
    """
    arms = ("dense", "narrow", "moe_active", "moe")
    rows = argument.moments(task, arms)
    parts = {
        "less width a token, alone": (("narrow", 1), ("dense", -1)),
        "experts, alone": (("moe_active", 1), ("dense", -1)),
        "beyond the sum": (("moe", 1), ("narrow", -1), ("moe_active", -1), ("dense", 1)),
        "both: the MoE's shift": (("moe", 1), ("dense", -1)),
    }
    found = []
    for name, terms in parts.items():
        row = {"part": name}
        for column, (moment, measure) in TAKEN.items():
            by = {
                arm: dict(rows.filter(arm=arm, moment=moment).select("seed", measure).iter_rows())
                for arm, _ in terms
            }
            common = sorted(set.intersection(*(set(values) for values in by.values())))
            if not common:
                row[column] = "—"
                continue
            each = summary([100 * sum(sign * by[arm][seed] for arm, sign in terms) for seed in common])
            bounds = (
                f"<br>({signed(each.low, 1)}\u00a0to\u00a0{signed(each.high, 1)})"
                if each.low is not None and each.high is not None
                else ""
            )
            row[column] = hover(
                f"{signed(each.mean, 1)}{bounds}",
                f"{each.n} pairs, 95 % bootstrap CI; runs: {', '.join(arm for arm, _ in terms)}, "
                f"{argument.profile} profile",
            )
        found.append(row)
    return pl.DataFrame(found)
