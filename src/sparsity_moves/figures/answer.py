"""The picture of the answer: one layer, its FFN taken away, and how much of the task is left."""

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import percent
from sparsity_moves.figures.strips import runs_shown
from sparsity_moves.figures.summary import METHOD, value
from sparsity_moves.figures.theme import arm_style
from sparsity_moves.figures.words import MOMENT_NAMES, profile, seeds, setting

ROWS = ("dense", "narrow", "moe", "moe_frozen")
AWAY = {
    "ffn": ("the FFN", "no_ffn_accuracy"),
    "attention": ("attention", "no_attention_accuracy"),
    "nothing": ("nothing", "accuracy"),
}


def answer(moments: pl.DataFrame, full: pl.DataFrame | None = None, *, moment: str = "first_best") -> Figure:
    """A one-layer Transformer for each of four FFNs, and its accuracy on add-7 without one of its parts.

    Args:
        moments: rows of the first result.
        full: the same at full scale, where a selection box is to show those instead.
        moment: the checkpoint looked at.
    """
    lanes = {
        lane: table.filter(pl.col("arm").is_in(ROWS), task="add7", moment=moment)
        for lane, table in (("here", moments), ("full", full))
        if table is not None
    }
    rows = lanes["here"]
    shown = lanes.get("full", rows)  # which the box begins with
    experts = int(rows.filter(arm="moe")["experts"][0])
    parts, results = [], []
    for place, arm in enumerate(ROWS):
        style = arm_style(arm)
        at = {"row": place, "colour": style.colour, "label": style.label}
        parts.append(
            at | {"part": "attention", "left": 20, "right": 36, "low": 0.2, "high": 0.8, "open": True}
        )
        blocks = experts if arm.startswith("moe") else 1
        width = 30 / experts if arm == "narrow" else 30 / blocks
        for block in range(blocks):
            parts.append(
                at
                | {
                    "part": "ffn",
                    "left": 44 + block * width + 0.3,
                    "right": 44 + (block + 1) * width - 0.3,
                    "low": 0.2,
                    "high": 0.8,
                    "open": block == (1 if blocks > 1 else 0),
                }
            )
        for away, (_, column) in AWAY.items():
            for lane, models in lanes.items():
                if models.filter(arm=arm).is_empty():
                    continue
                found = value(models, column, arm=arm)
                results.append(
                    at | {"runs": lane, "away": away, "percent": round(100 * found.mean, 1), "n": found.n}
                )
    take = alt.param(
        name="away",
        value="ffn",
        bind=alt.binding_select(
            options=list(AWAY), labels=[words for words, _ in AWAY.values()], name="Take away "
        ),
    )
    chart = _picture(pl.DataFrame(parts), pl.DataFrame(results)).add_params(
        take, runs_shown(full is not None)
    )
    dense, sparse = (value(shown, "no_ffn_accuracy", arm=arm) for arm in ("dense", "moe"))
    return show(
        chart,
        name="answer",
        caption=(
            f"Four one-layer Transformers that add ({setting(rows)}) and differ in the FFN only; one block is one "
            f"expert; of an FFN that is there, the filled one is open. On the "
            "right, how many answer digits are right once a part is taken away: "
            + ("at full scale, " if full is not None else "")
            + f"mean of {seeds(shown)}, "
            f"{profile(shown)}, {MOMENT_NAMES[moment]}"
            + (f"; the box has this build, too ({seeds(rows)}, {profile(rows)})" if full is not None else "")
            + ". {numref}"
            f"`fig-component-ablation` has every model with its interval ({METHOD})."
        ),
        alt=(
            "A drawing of four Transformers: input, attention, feed-forward layer, answer. Without the FFN the dense "
            f"model gets {percent(dense.mean)} of the digits right, the mixture of experts {percent(sparse.mean)}."
        ),
        data=pl.DataFrame(results).select("label", "runs", "away", "percent", "n"),
    )


def _picture(parts: pl.DataFrame, results: pl.DataFrame) -> alt.LayerChart | alt.FacetChart:
    across = alt.X("left:Q", scale=alt.Scale(domain=[0, 100]), axis=None)
    down = alt.Y("middle:Q", scale=alt.Scale(domain=[len(ROWS), -0.45]), axis=None)
    colour = alt.Color("colour:N", scale=None)
    rows = pl.DataFrame({"row": list(range(len(ROWS)))})
    stream = (
        alt.Chart(rows)
        .transform_calculate(middle="datum.row + 0.6", left="14", right="80")
        .mark_rule(strokeWidth=3, opacity=0.5, tooltip=None)
        .encode(across, alt.X2("right:Q"), down)
    )
    boxes = (
        alt.Chart(parts)
        .transform_calculate(middle="datum.row + datum.low + 0.1", bottom="datum.row + datum.high + 0.1")
        .mark_rect(cornerRadius=4, strokeWidth=1.5, tooltip=None)
        .encode(
            across,
            alt.X2("right:Q"),
            down,
            alt.Y2("bottom:Q"),
            colour,
            stroke=alt.Stroke("colour:N", scale=None),
            fillOpacity=alt.FillOpacity("shade:Q", scale=None),
            strokeOpacity=alt.condition("away == datum.part", alt.value(0.35), alt.value(1)),
        )
        .transform_calculate(shade="away == datum.part ? 0 : datum.open ? 0.85 : 0.12")
    )
    centres = parts.group_by("row", "part", maintain_order=True).agg(
        ((pl.col("left").min() + pl.col("right").max()) / 2).alias("left")
    )
    crosses = (
        alt.Chart(centres)
        .transform_filter("away == datum.part")
        .transform_calculate(middle="datum.row + 0.6")
        .mark_text(text="✕", fontSize=24, tooltip=None)
        .encode(across, down)
    )
    labels = (
        alt.Chart(results)
        .transform_filter("datum.away == away && datum.runs == runs")
        .transform_calculate(middle="datum.row + 0.6", words="format(datum.percent, '.0f') + ' %'")
    )
    heads = alt.Chart(
        pl.DataFrame(
            {"left": [28, 59, 89], "middle": [-0.2] * 3, "words": ["attention", "FFN", "digits right"]}
        )
    )
    picture = alt.layer(
        stream,
        boxes,
        crosses,
        labels.transform_calculate(left="13")
        .mark_text(align="right", fontSize=12, tooltip=None)
        .encode(across, down, text="label:N"),
        labels.transform_calculate(left="89")
        .mark_text(fontSize=20, fontWeight="bold")
        .encode(across, down, text="words:N", tooltip=["label:N", "percent:Q", "n:Q"]),
        heads.mark_text(fontSize=13, fontStyle="italic", tooltip=None).encode(across, down, text="words:N"),
    )
    return picture.properties(width=620, height=64 * len(ROWS) + 28)
