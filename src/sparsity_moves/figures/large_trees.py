"""A model past a billion parameters, with trees and without: memory, times and some steps, as they were measured."""

import statistics
from typing import Any

import altair as alt
import polars as pl

from sparsity_moves.figures.benchmarks import committed
from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import Text, table
from sparsity_moves.figures.theme import arm_colours, arm_label


def benchmarks() -> list[dict[str, Any]]:
    """The committed tables of `benchmarks/large_trees.py`, one device's before those of several."""
    found = committed("large_trees-*.json").values()
    return sorted(found, key=lambda each: (each["processes"], each["device"], each["ffn"]))


def where(found: dict[str, Any]) -> str:
    """ "2 × NVIDIA H100"; a process has a device of its own."""
    return f"{found['processes']} × {found['device']}"


def step_seconds(found: dict[str, Any]) -> float:
    """Median of all steps but the first, which compiles."""
    return float(statistics.median(step["seconds"] for step in found["steps"][1:]))


def large_table(tables: list[dict[str, Any]]) -> Text:
    """One row a model and number of devices."""
    milliseconds = [
        {part: 1e3 * seconds for part, seconds in found.get("layer_seconds", {}).items()} for found in tables
    ]
    return table(
        pl.DataFrame(
            [
                {
                    "FFN": arm_label(found["ffn"]),
                    "devices": where(found),
                    "parameters, billions": f"{found['parameters'] / 1e9:.3f}",
                    "memory a device, GiB": f"{found['peak_bytes'] / 2**30:.1f}"
                    if "peak_bytes" in found
                    else None,
                    "attention, ms": f"{times['attention']:.2f}" if times else None,
                    "FFN, ms": f"{times['ffn']:.2f}" if times else None,
                    "a step, s": f"{step_seconds(found):.3f}",
                    "loss": f"{found['steps'][0]['loss']:.2f} → {found['steps'][-1]['loss']:.2f}",
                }
                for found, times in zip(tables, milliseconds, strict=True)
            ]
        ),
        name="large-trees",
        caption=(
            "A model of OPT-1.3B's shape. Memory: the most of any device, with fp32 parameters, gradients and Adam's "
            "moments. Milliseconds: a layer's forward pass in bf16, casts and launches counted in. A step: median "
            "without the first. The loss, in nats a byte, from the first step to the last."
        ),
    )


def large_steps(tables: list[dict[str, Any]]) -> Figure:
    """The loss of every step that was taken."""
    shown = pl.DataFrame(
        [
            {
                "ffn": arm_label(found["ffn"]),
                "devices": where(found),
                "step": number,
                "loss": round(step["loss"], 3),
                "seconds": round(step["seconds"], 3),
            }
            for found in tables
            for number, step in enumerate(found["steps"], start=1)
        ]
    )
    kinds = list(dict.fromkeys(found["ffn"] for found in tables))
    ends = [
        f"{arm_label(found['ffn'])} on {where(found)}: {losses[0]:.1f} to {losses[-1]:.1f}"
        for found in tables
        for losses in [[step["loss"] for step in found["steps"]]]
    ]
    legend = alt.Legend(title=None, orient="top")
    chart = (
        alt.Chart(shown)
        .mark_line(point=alt.OverlayMarkDef(size=36))
        .encode(
            alt.X("step:Q", title="Training step"),
            alt.Y("loss:Q", title="Loss (nats a byte)", scale=alt.Scale(zero=False)),
            alt.Color("ffn:N", scale=arm_colours(kinds), legend=legend),
            alt.StrokeDash("devices:N", legend=legend),
            tooltip=["ffn:N", "devices:N", "step:Q", "loss:Q", "seconds:Q"],
        )
        .properties(width=460, height=220)
    )
    return show(
        chart,
        name="large-trees",
        caption="First steps of models past a billion parameters, from scratch: training works, no more is shown.",
        alt=f"Lines over steps. {'; '.join(ends)}.",
        data=shown,
    )


def told(tables: list[dict[str, Any]]) -> list[str]:
    """What was run, how trees fare there, what several devices change, and what was not run: a paragraph each."""
    of = {(found["ffn"], found["device"], found["processes"]): found for found in tables}
    runs = {
        f"{len(found['steps'])} steps of {found['batch']} windows of {found['length']} bytes, on {where(found)} "
        f"(PyTorch {found['torch']})"
        for found in tables
    }
    said = [f"**What was run**: from random weights, {'; '.join(sorted(runs))}."]
    for (ffn, device, processes), found in of.items():
        dense = of.get(("dense", device, processes))
        if ffn != "dense" and dense is not None:
            parts = [f"a step takes {step_seconds(found) / step_seconds(dense):.2f} times as long"]
            if "layer_seconds" in found and "layer_seconds" in dense:
                times = found["layer_seconds"]["ffn"] / dense["layer_seconds"]["ffn"]
                parts.append(f"one FFN's forward pass {times:.1f} times")
            said.append(f"With trees, on {where(found)}, {', '.join(parts)} as with dense FFNs.")
    return [*said, _several(of)]


def _several(of: dict[tuple[str, str, int], dict[str, Any]]) -> str:
    """What became of the models that FSDP2 shards."""
    said = []
    for (ffn, device, processes), found in of.items():
        one = of.get((ffn, device, 1))
        if processes == 1 or device == "cpu":
            continue
        memory, seconds = found["peak_bytes"] / 2**30, step_seconds(found)
        words = f"{arm_label(ffn)}: {memory:.1f} GiB a device, {seconds:.3f} s a step"
        if one is not None:
            apart = max(
                abs(many["loss"] - single["loss"]) / single["loss"]
                for many, single in zip(found["steps"], one["steps"], strict=False)
            )
            words += (
                f" (one device: {one['peak_bytes'] / 2**30:.1f} GiB, {step_seconds(one):.3f} s; losses at most "
                f"{apart:.1%} apart)"
            )
        said.append(f"{words}, on {where(found)}")
    if not said:
        return "**On several GPUs it has not been run.**"
    return f"**Sharded by FSDP2**, which keeps the residual stream in bf16, too: {'; '.join(said)}."
