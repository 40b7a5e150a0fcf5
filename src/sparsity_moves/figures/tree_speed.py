"""When is a tree faster? Times of one layer against the dense one's, from the committed benchmark tables."""

from typing import Any

import altair as alt
import polars as pl

from sparsity_moves.figures.benchmarks import committed
from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import Text, table
from sparsity_moves.figures.strips import nothing_yet, selected

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
KINDS = {"dense": "#5f636a", "MoE": "#1762b6", "trees": "#8548ac"}


def benchmarks() -> dict[str, dict[str, Any]]:
    """The committed tables of `benchmarks/tree_speed.py`, by device; those that are there."""
    found = committed("tree_speed-*.json")
    return {device: found[f"tree_speed-{device}"] for device in DEVICES if f"tree_speed-{device}" in found}


def busy(found: dict[str, Any]) -> bool:
    """Whether others had work for the machine while it was measured: more than one task waited for a core."""
    return float(found.get("load", 0)) > int(found["threads"]) + 1


def rows(found: dict[str, Any]) -> pl.DataFrame:
    """One row a layer and kind of work."""
    return pl.DataFrame(found["rows"], infer_schema_length=None).with_columns(
        # Where a book speaks of layers too, a tree has a height.
        layer=pl.col("layer").str.replace(" of depth ", " of height ", literal=True),
        kind=pl.when(pl.col("layer") == "dense")
        .then(pl.lit("dense"))
        .when(pl.col("layer").str.starts_with("MoE"))
        .then(pl.lit("MoE"))
        .otherwise(pl.lit("trees")),
        active_percent=(100 * pl.col("active") / pl.col("width")).round(2),
        work=pl.format("{} tokens, {}", "tokens", "what").str.replace("^1 tokens", "1 token"),
        floor=(pl.col("times_dense") / pl.col("of_floor")).round(2),
        milliseconds=(pl.col("seconds") * 1e3).round(3),
    )


def speed(device: str, found: dict[str, Any]) -> Figure | Text:
    """Times faster than dense over the share of units that are open; the floor of each layer above it."""
    every = rows(found)
    if every.is_empty():
        return nothing_yet("This benchmark")
    shown = every.select(
        "layer", "kind", "work", "active_percent", pl.col("times_dense").round(2), "floor", "milliseconds",
        (100 * pl.col("of_floor")).round(1).alias("of_floor_percent"), "agrees",
    )  # fmt: skip
    works = {work: work for work in shown["work"].unique(maintain_order=True)}
    there = [kind for kind in KINDS if kind in set(shown["kind"])]
    base = alt.Chart(shown).transform_filter("datum.work == work_chosen")
    x = alt.X("active_percent:Q", title="Units open for a token (%)", scale=alt.Scale(type="log"))
    scale = alt.Scale(type="log")
    legend = alt.Legend(title=None, orient="top")
    colour = alt.Color(
        "kind:N", scale=alt.Scale(domain=there, range=[KINDS[k] for k in there]), legend=legend
    )
    tips = [
        "layer:N",
        alt.Tooltip("milliseconds:Q", title="ms"),
        alt.Tooltip("times_dense:Q", title="times as fast as dense"),
        alt.Tooltip("of_floor_percent:Q", title="of the floor's speed (%)"),
    ]
    chart = alt.layer(
        alt.Chart(pl.DataFrame({"one": [1]}))
        .mark_rule(strokeDash=[6, 4], opacity=0.6)
        .encode(alt.Y("one:Q", scale=scale)),
        base.mark_rule(opacity=0.4).encode(x, alt.Y("times_dense:Q", scale=scale), alt.Y2("floor:Q"), colour),
        base.mark_tick(thickness=2).encode(x, alt.Y("floor:Q", scale=scale), colour, tooltip=tips),
        base.mark_point(size=90).encode(
            x,
            alt.Y("times_dense:Q", title="Times as fast as dense", scale=scale),
            colour,
            alt.Shape(
                "kind:N",
                scale=alt.Scale(domain=there, range=["circle", "diamond", "triangle-up"][: len(there)]),
                legend=legend,
            ),
            tooltip=tips,
        ),
    ).properties(width=460, height=280)
    name = found["rates"][device]["name"]
    first = shown.filter(work=next(iter(works)))
    return show(
        chart.add_params(selected("work_chosen", "Work:", works)),
        name=f"tree-speed-{device}",
        caption=(
            f"Speed of one layer over the dense layer's of the same total width ({name}; PyTorch {found['torch']}). "
            "The line above each symbol reaches to its **floor**: what the layer's own arithmetic, or the memory "
            "that it touches, takes at the rates measured in the same run. Below the dashed line it loses."
        ),
        alt=f"Points over the open share. {next(iter(works))}: "
        + ", ".join(
            f"{layer} {times:g} times dense"
            for layer, times in first.select("layer", "times_dense").iter_rows()
        )
        + ".",
        data=shown,
    )


def speed_table(device: str, found: dict[str, Any]) -> Text:
    """The trees alone, a row each and a column a kind of work."""
    each = (
        rows(found)
        .filter(kind="trees")
        .with_columns(
            cell=pl.format(
                "{} ({} %)",
                pl.col("times_dense").round(1),
                (100 * pl.col("of_floor")).round(0).cast(pl.Int64),
            )
        )
    )
    wide = each.pivot("work", index=["layer", "active_percent"], values="cell")
    return table(
        wide.rename({"layer": "trees", "active_percent": "open, %"}),
        name=f"tree-speed-{device}",
        caption=f"Times as fast as dense, and in brackets the share of the floor's speed ({DEVICES[device]}).",
    )
