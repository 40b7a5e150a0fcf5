"""The same training by five programs: how fast each is, and what becomes of that when models are many."""

from typing import Any

import altair as alt
import polars as pl

from sparsity_moves.figures.benchmarks import committed
from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.prose import Text, hover, listed, table
from sparsity_moves.figures.strips import selected
from sparsity_moves.figures.theme import arm_label
from sparsity_moves.figures.words import TASK_NAMES, sentence

PROGRAMS = {
    "a": ("plain PyTorch loop", "#5f636a", "circle"),
    "b": ("the same, torch.compile", "#9c6e00", "square"),
    "c": ("torch.func vmap", "#1762b6", "diamond"),
    "d": ("JAX vmap + jit", "#0b7643", "triangle-up"),
    "e": ("this project", "#8548ac", "triangle-down"),
}
"""Name, colour and symbol, by the letter that the table has."""
NAMES = [name for name, _, _ in PROGRAMS.values()]
MANY = 64


def benchmarks() -> dict[str, dict[str, Any]]:
    """The committed tables of `benchmarks/peers_speed.py`: a GPU's (of several the fullest), and the CPU's."""
    found = [each for name, each in committed("peers-*.json").items() if not name.endswith("-quick")]
    return {kind(each): each for each in sorted(found, key=lambda each: len(each["cells"]))}


def kind(found: dict[str, Any]) -> str:
    return "cpu" if "CPU" in found["device"] else "gpu"


def work_of(problem: str) -> str:
    """ "add7, moe" → "Addition with carry, MoE"."""
    task, arm = problem.split(", ")
    return f"{sentence(TASK_NAMES[task.replace(' ', '_')])}, {arm_label(arm)}"


def rows(found: dict[str, Any]) -> pl.DataFrame:
    """One row a kind of work, number of models and program that could run."""
    return pl.DataFrame(
        [
            {
                "work": work_of(cell["problem"]),
                "models": cell["models"],
                "program": PROGRAMS[letter][0],
                "rate": round(seen["model_steps_per_second"], 1),
                "times_plain": round(seen["times_a"], 2),
                "floor_percent": round(100 * seen["of_floor"], 3),
                "set_up": round(seen["setup"], 1),
                "agrees": seen.get("agrees", True),
                "loss_difference": seen.get("loss_difference"),
                "limit": round(1 / found["floor_seconds"][cell["problem"]]),
            }
            for cell in found["cells"]
            for letter, seen in cell["rows"].items()
            if "model_steps_per_second" in seen
        ],
        infer_schema_length=None,
    )


def growth(found: dict[str, Any]) -> Figure:
    """Model-steps a second over the number of models, a line a program; the floor's speed above them."""
    shown = rows(found).drop("loss_difference")
    works = {work: work for work in shown["work"].unique(maintain_order=True)}
    sizes = sorted(shown["models"].unique())
    colours = alt.Scale(domain=NAMES, range=[colour for _, colour, _ in PROGRAMS.values()])
    shapes = alt.Scale(domain=NAMES, range=[shape for _, _, shape in PROGRAMS.values()])
    legend = alt.Legend(title=None, orient="top", columns=3)
    x = alt.X(
        "models:Q", title="Models trained together", scale=alt.Scale(type="log"), axis=alt.Axis(values=sizes)
    )
    y = alt.Y("rate:Q", title="Model-steps a second", scale=alt.Scale(type="log"))
    base = alt.Chart(shown).transform_filter("datum.work == work_chosen")
    lines = base.encode(
        x,
        y,
        alt.Color("program:N", scale=colours, legend=legend),
        alt.Shape("program:N", scale=shapes, legend=legend),
        tooltip=[
            "program:N",
            "models:Q",
            alt.Tooltip("rate:Q", title="model-steps a second"),
            alt.Tooltip("times_plain:Q", title="times the plain loop"),
            alt.Tooltip("floor_percent:Q", title="of the floor's speed (%)"),
            alt.Tooltip("set_up:Q", title="set-up (s)"),
        ],
    )
    chart = alt.layer(
        base.mark_rule(strokeDash=[6, 4], opacity=0.6).encode(
            alt.Y("max(limit):Q", scale=alt.Scale(type="log"))
        ),
        lines.mark_line(),
        lines.mark_point(size=70),
    ).properties(width=440, height=280)
    first = shown.filter(pl.col("work") == next(iter(works)), pl.col("models") == pl.col("models").max())
    return show(
        chart.add_params(selected("work_chosen", "Work:", works)),
        name=f"peers-{kind(found)}",
        caption=(
            f"Five programs train the same models on the same batches ({found['device']}). The first two take one "
            "model after another, whatever there is. Dashed: the **floor**, one step's arithmetic or memory at the "
            "rates that products and copies reached in the same run."
        ),
        alt=f"Lines over the number of models. {next(iter(works))}, {first['models'][0]} models: "
        + ", ".join(
            f"{program} {rate:,.0f} model-steps a second"
            for program, rate in first.select("program", "rate").iter_rows()
        )
        + ".",
        data=shown,
    )


def peers_table(found: dict[str, Any]) -> Text:
    """Times the plain loop, and the share of the floor's speed: a row a kind of work and number of models."""
    lines = []
    for (work, models), each in (
        rows(found).sort("work", "models").group_by("work", "models", maintain_order=True)
    ):
        line = {"work": work, "models": models}
        for program in NAMES:
            seen = each.filter(program=program).to_dicts()
            line[program] = _cell(*seen, plain=program == NAMES[0]) if seen else "—"
        lines.append(line)
    return table(
        pl.DataFrame(lines),
        name=f"peers-{kind(found)}",
        caption=(
            "Model-steps a second of the plain loop; of the others, times that; in brackets the share of the "
            f"floor's speed ({found['device']}). ✗: losses that differ from this project's."
        ),
    )


def _cell(seen: dict[str, Any], *, plain: bool) -> str:
    shown = f"{seen['rate']:,.0f}" if plain else f"{seen['times_plain']:.1f} ×"
    return hover(
        f"{shown} ({seen['floor_percent']:.2g}\u00a0%){'' if seen['agrees'] else ' ✗'}",
        f"{seen['rate']:,.0f} model-steps a second; set-up {seen['set_up']:g} s",
    )


def _span(values: pl.Series, pattern: str) -> str:
    """ "1.2 to 1.9", or "3.0" where both ends are the same."""
    return " to ".join(dict.fromkeys(format(end, pattern) for end in (values.min(), values.max())))


def told(found: dict[str, Any]) -> list[str]:
    """What the table says, what it lacks and where its losses differ: a paragraph each."""
    every = rows(found)
    names = {"torch": "PyTorch", "triton": "Triton", "jax": "JAX"}
    versions = listed([f"{name} {found['versions'][key]}" for key, name in names.items()])
    said = [f"**{found['device']}** ({versions}; `{found['command']}`). One machine: medians, no interval."]
    most = MANY if MANY in set(every["models"]) else max(every["models"])
    for models in dict.fromkeys((most, 1)):
        of_size = every.filter(models=models)
        own = of_size.filter(program=NAMES[-1])
        if own.is_empty():
            continue
        best = of_size.sort("rate", descending=True).unique("work", keep="first", maintain_order=True)
        behind = best.filter(pl.col("program") != NAMES[-1]).join(own, on="work", suffix="_own")
        losses = [
            f"{row['program']} is {row['rate'] / row['rate_own']:.2f} times as fast ({row['work']})"
            for row in behind.iter_rows(named=True)
        ]
        said.append(
            f"With {models} model{'s' * (models > 1)} this project takes {_span(own['times_plain'], '.1f')} times as "
            f"many steps a second as the plain loop, {_span(own['floor_percent'], '.2g')}\u00a0% of the floor's "
            f"speed. It is the fastest of the five in {len(own) - len(behind)} of {len(own)} kinds of work"
            + (f": {'; '.join(losses)}." if losses else ".")
        )
    own = every.filter(program=NAMES[-1])
    both = own.filter(models=most).join(own.filter(models=1), on="work", suffix="_one")
    if most > 1 and len(both):
        grown = both["rate"] / both["rate_one"]
        said.append(f"From 1 model to {most} its own steps a second grow {_span(grown, '.1f')}-fold.")
    return [*said, *_lacking(found), _losses(found, every)]


def _lacking(found: dict[str, Any]) -> list[str]:
    there = {(cell["problem"], cell["models"]) for cell in found["cells"]}
    known = {problem for problem, _ in there}
    lacking: dict[int, list[str]] = {}
    for line in found["left_out"]:  # "add7, moe, M = 4: left out, the time was up"
        problem, _, size = line.partition(":")[0].rpartition(", M = ")
        known.add(problem)
        if (problem, int(size)) not in there:
            lacking.setdefault(int(size), []).append(work_of(problem))
    parts = [
        f"{size} model{'s' * (size > 1)}" + (f" ({'; '.join(own)})" if len(own) < len(known) else "")
        for size, own in sorted(lacking.items())
    ]
    return [f"**Not measured**, for want of time: {listed(parts)}."] if parts else []


def _losses(found: dict[str, Any], every: pl.DataFrame) -> str:
    tolerance = listed([f"{value:g} in {kind.upper()}" for kind, value in found["tolerance"].items()])
    held = f"The first round's losses are held to this project's, within {tolerance} of each."
    wrong = [
        f"{row['program']} ({row['work']}, {row['models']} models, by up to {row['loss_difference']:.2g})"
        for row in every.filter(~pl.col("agrees")).iter_rows(named=True)
    ]
    if not wrong:
        return f"{held} All agree."
    return f"{held} **Not so**: {listed(wrong)}."
