"""What the explorer reads: a store's tables in columns, small enough for a page and cut where it loads them.

A chunk is JSON. Its arrays are little-endian and in base64: shares as 16 bits (65 535 is none), other numbers as
32-bit floats (NaN is none). A share is thus kept to 1/65 534, finer than one answer in the largest evaluation here.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
import torch

from sparsity_moves.figures.reference import CURVES, RUNS
from sparsity_moves.figures.theme import arm_style
from sparsity_moves.model import forward, stack
from sparsity_moves.names import MOMENTS
from sparsity_moves.store import Store
from sparsity_moves.studies.evidence import MAIN, Evidence
from sparsity_moves.tasks import TASKS, Addition, ModularAddition, Task, stacked
from sparsity_moves.training import Spec

Chunk = dict[str, Any]
_NAMES = list(RUNS)
MEASURES = _NAMES[_NAMES.index("step") : _NAMES.index("profile")]
"""Columns of runs.parquet that a model has one value of at each moment."""
SETTINGS = _NAMES[_NAMES.index("profile") :]
DRAWN = [name for name in CURVES if name not in ("spec_id", "arm", "step", "seed", "task")]
"""Columns of curves.parquet that are drawn over the steps."""
LOOKS = 100
"""Looks of a run that are kept, evenly apart and the last among them."""
INPUTS = 512
"""Inputs that an attention pattern is averaged over."""
NONE, WHOLE = 65_535, 65_534
SOURCES = {"paper": "full scale", "own": "this computer"}


def chunks(sources: Mapping[str, Evidence], stores: Mapping[str, Store]) -> dict[str, Chunk]:
    """Every chunk by its key: `runs-SOURCE-TASK`, `curves-SOURCE-TASK-NUMBER` and `attention-SOURCE-TASK`.

    Args:
        sources: the tables, by a name of `SOURCES`.
        stores: where the parameters of these runs lie.
    """
    found = {}
    for source, evidence in sources.items():
        for task in TASKS:
            rows = models(evidence.rows.filter(task=task))
            if rows.is_empty():
                continue
            patterns = dict(attention(rows, evidence, stores[source]))
            arms = rows["arm"].unique(maintain_order=True).to_list()
            found[f"runs-{source}-{task}"] = _runs(evidence, rows, arms) | {"attention": list(patterns)}
            if patterns:
                found[f"attention-{source}-{task}"] = {str(at): each for at, each in patterns.items()}
            for number, arm in enumerate(arms):
                found[f"curves-{source}-{task}-{number}"] = _curves(evidence, rows.filter(arm=arm))
    return found


def models(rows: pl.DataFrame) -> pl.DataFrame:
    """Each model once, by its main name, with the studies that it stands in; arms and their seeds together."""
    main = pl.col("study") != MAIN
    named = rows.sort(main, maintain_order=True).group_by("spec_id", maintain_order=True)
    first = named.agg(
        pl.col("arm", "seed").first(), pl.col("study").unique(maintain_order=True).str.join(", ")
    )
    order = first["arm"].unique(maintain_order=True).to_list()
    return first.sort(
        pl.col("arm").replace_strict({arm: i for i, arm in enumerate(order)}), "seed", maintain_order=True
    )


def _runs(evidence: Evidence, rows: pl.DataFrame, arms: list[str]) -> Chunk:
    every = evidence.rows.filter(pl.col("spec_id").is_in(rows["spec_id"].to_list()))
    every = every.unique(("spec_id", "moment"), keep="first")
    at = {
        moment: rows.select("spec_id").join(
            every.filter(moment=moment), on="spec_id", how="left", maintain_order="left"
        )
        for moment in MOMENTS
    }
    columns = [name for name in SETTINGS if name in every.columns]
    own = rows.select("spec_id").join(
        every.unique("spec_id").select("spec_id", *columns), on="spec_id", maintain_order="left"
    )
    settings = own.drop("spec_id").unique(maintain_order=True)
    number = own.join(settings.with_row_index("number"), on=columns, nulls_equal=True, maintain_order="left")[
        "number"
    ]
    studies = rows["study"].unique(maintain_order=True).to_list()
    styles = [arm_style(arm) for arm in arms]
    return {
        "ids": rows["spec_id"].to_list(),
        "arms": [[arm, s.label, s.colour, s.shape] for arm, s in zip(arms, styles, strict=True)],
        "arm": rows["arm"].replace_strict({arm: i for i, arm in enumerate(arms)}).to_list(),
        "seed": rows["seed"].to_list(),
        "studies": studies,
        "study": rows["study"].replace_strict({name: i for i, name in enumerate(studies)}).to_list(),
        "settings": [{k: v for k, v in row.items() if v is not None} for row in settings.to_dicts()],
        "setting": number.to_list(),
        "moments": {
            moment: {name: packed(table[name]) for name in MEASURES if name in table.columns}
            for moment, table in at.items()
            if table["step"].null_count() < len(table)
        },
    }


def _curves(evidence: Evidence, rows: pl.DataFrame) -> Chunk:
    """The curves of one arm's models, those of equal looks together; `rows` counts within the arm."""
    place = {spec_id: i for i, spec_id in enumerate(rows["spec_id"])}
    lines = (
        evidence.curves.filter(pl.col("spec_id").is_in(list(place))).unique(("spec_id", "step")).sort("step")
    )
    groups: dict[tuple[int, ...], list[str]] = {}
    for (spec_id,), line in lines.group_by("spec_id"):
        groups.setdefault(tuple(line["step"]), []).append(str(spec_id))
    found = []
    for steps, ids in groups.items():
        ids.sort(key=place.__getitem__)
        kept = steps[:: -max(1, len(steps) // LOOKS)][::-1]
        mine = pl.DataFrame({"spec_id": ids}).join(
            lines.filter(pl.col("step").is_in(kept)), on="spec_id", maintain_order="left_right"
        )
        values = {name: packed(mine[name]) for name in DRAWN if mine[name].null_count() < len(mine)}
        found.append({"rows": [place[i] for i in ids], "steps": kept, "values": values})
    return {"groups": found}


def packed(column: pl.Series) -> Chunk:
    """Numbers as an array in base64: shares as 16 bits; others, and losses, which may be tiny, as floats."""
    values = column.cast(pl.Float64).to_numpy()
    some = values[~np.isnan(values)]
    if column.name != "loss" and column.dtype.is_float() and (some >= 0).all() and (some <= 1).all():
        short = np.where(np.isnan(values), NONE, np.rint(np.nan_to_num(values) * WHOLE)).astype("<u2")
        return {"kind": "share", "data": base64.b64encode(short.tobytes()).decode()}
    return {"kind": "number", "data": base64.b64encode(values.astype("<f4").tobytes()).decode()}


def attention(rows: pl.DataFrame, evidence: Evidence, store: Store) -> Iterator[tuple[int, Chunk]]:
    """The mean attention pattern of every model that has one, by its place among the rows.

    At its last moment and in its first layer, (heads, read-outs, tokens): from the table of attention where the run
    stands in it, else from its parameters where these are stored.
    """
    measured = dict(_tabled(rows, evidence))
    for place, (spec_id, seed) in enumerate(rows.select("spec_id", "seed").iter_rows()):
        own = {name: value for name, value in evidence.settings[spec_id].items() if name != "protocol"}
        spec = Spec(**own | {"seed": seed})
        if spec_id in measured:
            found = _of_table(spec, measured[spec_id])
        elif store.checkpoint_file(spec_id) is not None:
            found = _of_parameters(spec, store)
        else:
            continue
        yield place, found


def _tabled(rows: pl.DataFrame, evidence: Evidence) -> Iterator[tuple[str, pl.DataFrame]]:
    if "attention" not in evidence.families:
        return
    table = evidence.families["attention"].filter(
        pl.col("spec_id").is_in(rows["spec_id"].to_list()), pl.col("carry").is_null(), layer=0
    )
    latest = pl.col("moment").replace_strict(
        {moment: i for i, moment in enumerate(MOMENTS)}, return_dtype=pl.Int8
    )
    table = table.filter(latest == latest.max().over("spec_id"))
    for (spec_id,), weights in table.group_by("spec_id"):
        yield str(spec_id), weights


def _of_table(spec: Spec, weights: pl.DataFrame) -> Chunk:
    """A run's rows of the table; the histogram's are by relation, its positions being alike."""
    task, heads = spec.task_object, spec.heads
    if weights["position"].null_count():
        answers, tokens = ["all"], weights["relation"].unique(maintain_order=True).to_list()
        at = np.zeros(len(weights), int)
        to = weights["relation"].replace_strict({kind: i for i, kind in enumerate(tokens)}).to_numpy()
    else:
        tokens = names(task)
        answers = [tokens[place] for place in task.read_out]
        at, to = (weights[name].to_numpy() for name in ("position", "key"))
    found = np.zeros((heads, len(answers), len(tokens)))
    found[weights["head"].to_numpy(), at, to] = weights["weight"].to_numpy()
    asked = found.sum(axis=(0, 2)) > 0  # read-outs that are not scored have no rows
    return _pattern(
        found[:, asked], [name for name, there in zip(answers, asked, strict=True) if there], tokens
    ) | {"moment": weights["moment"][0]}


def _of_parameters(spec: Spec, store: Store) -> Chunk:
    task, moment = spec.task_object, max(store.kept(spec.spec_id), key=MOMENTS.index)
    inputs = stacked([task.evaluation(0, INPUTS)])
    every = max(1, inputs.tokens.shape[1] // INPUTS)
    with torch.inference_mode():
        model = stack([store.checkpoint(spec.spec_id, moment)])
        pattern = forward(spec.architecture, model, inputs.tokens[:, ::every]).layers[0].pattern
    assert pattern is not None, "the reference keeps its patterns"
    if len(pattern[0, 0, 0]) > len(task.read_out):  # a deeper model's first layer answers everywhere
        pattern = pattern[:, :, :, list(task.read_out)]
    tokens = names(task)
    return _pattern(pattern[0].double().mean(0).numpy(), [tokens[at] for at in task.read_out], tokens) | {
        "moment": moment
    }


def _pattern(weights: np.ndarray, answers: list[str], tokens: list[str]) -> Chunk:
    flat = packed(pl.Series(weights.clip(0, 1).ravel()))
    return {"heads": len(weights), "answers": answers, "tokens": tokens, "data": flat["data"]}


def names(task: Task) -> list[str]:
    """What stands at each place of a sequence, in a word: digits by their value, the answer's with a stroke."""
    if isinstance(task, Addition):
        values = [f"{10**place}".replace("000", "k") for place in range(task.digits + 1)]
        return [*values[:-1], "EOS", *(f"{value}′" for value in values)][: task.length]
    return (
        ["a", "b", "="] if isinstance(task, ModularAddition) else [str(1 + at) for at in range(task.length)]
    )
