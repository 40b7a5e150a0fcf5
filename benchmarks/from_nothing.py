"""Every arm with all its seeds, from nothing: how long it takes, and whether it comes out as it did before.

    python benchmarks/from_nothing.py FOLDER                this machine's GPUs, or its cores, until all is trained
    python benchmarks/from_nothing.py FOLDER --minutes 9    goes on, at the next call, from where it stopped
    python benchmarks/from_nothing.py FOLDER --tasks add7   of some tasks alone; the table keeps those of the others
    python benchmarks/from_nothing.py FOLDER --sweeps       the sweeps instead, or some of them: what no arm has

FOLDER is a store of its own, so nothing that was trained before helps. Training, looks, measures and storing all
count, as does what is done twice after an interruption; starting Python does not. Each arm's means are then held
against those of the committed tables, seed by seed: the same start and the same batches, but other kernels, packages
or devices round otherwise, and what grows out of a rounding is another model of the same arm.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import torch
from rich.console import Console

from sparsity_moves import studies
from sparsity_moves.errors import UserError
from sparsity_moves.names import TaskName
from sparsity_moves.store import Store
from sparsity_moves.studies import controls, engine
from sparsity_moves.studies.engine.worker import circumstances
from sparsity_moves.studies.statistics import LEVEL, adjusted, compare, different
from sparsity_moves.studies.study import Study, results
from sparsity_moves.training import PROFILES, Spec

COMPARED = {"accuracy": "final", "no_ffn_accuracy": "first_best", "no_attention_accuracy": "first_best"}
"""What is compared, and at which moment."""
CALLS = "calls.json"
"""In the store: what each call took."""
TASKS = get_args(TaskName)


def again(study: Study, first: Store, second: Store) -> list[dict[str, Any]]:
    """Each arm's paired differences, second training minus first, over the seeds that both have."""
    both = Study(study.name, tuple(run for run in study.runs if first.has(run[1]) and second.has(run[1])))
    if not both.runs:
        return []
    before, after = (results(both, where).moments for where in (first, second))
    keys = ["task", "arm", "seed", "moment", "spec_id"]
    rows = []
    for column, moment in COMPARED.items():
        pairs = (
            before.filter(moment=moment)
            .select(*keys, column)
            .join(after.filter(moment=moment).select(*keys, pl.col(column).alias("after")), on=keys)
            .sort(keys)
        )
        for (task, arm), group in pairs.group_by("task", "arm", maintain_order=True):
            group = group.with_columns(difference=pl.col("after") - pl.col(column))
            lost = group.filter(~pl.col("difference").is_finite())
            group = group.filter(pl.col("difference").is_finite())
            if group.is_empty():
                continue
            differences = group["difference"].to_numpy()
            found = compare(differences.tolist())
            rows.append(
                {
                    "study": study.name,
                    "task": task,
                    "arm": arm,
                    "column": column,
                    "moment": moment,
                    "seeds": found.n,
                    "no_number": len(lost),
                    "first": group[column].mean(),
                    "second": group["after"].mean(),
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "p": None if found.n < 2 else float(different(differences)),
                    "same_to_the_bit": int((differences == 0).sum()),
                }
            )
    return rows


def sweeps_of(arms: Study, names: list[str]) -> list[Study]:
    """The profile's other studies, all unless named. Each run is in the first that has it, and none is an arm's."""
    taken = set(arms.specs)
    found = {}
    for study in studies.every(arms.profile):
        found[study.name] = Study(study.name, tuple(run for run in study.runs if run[1] not in taken))
        taken |= set(study.specs)
    if unknown := sorted(set(names) - set(found)):
        raise UserError(f"no study of the profile {arms.profile} is called {', '.join(unknown)}")
    return [study for name, study in found.items() if study.runs and name in (names or found)]


def corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with p corrected for how many there are."""
    tested = [row["p"] for row in rows if row["p"] is not None]
    every = iter(adjusted(np.array(tested)).tolist() if tested else [])
    return [row | {"p": None if row["p"] is None else next(every)} for row in rows]


def kept(output: Path, part: dict[str, Any]) -> list[dict[str, Any]]:
    """What the table tells of other tasks or studies, if it is of the same device and packages."""
    if not output.exists():
        return []
    same = ("profile", "arms", "device", "packages")
    parts: list[dict[str, Any]] = json.loads(output.read_text())["parts"]
    others = [p for p in parts if all(p[name] == part[name] for name in same)]
    return [p for p in others if not all(set(p[name]) & set(part[name]) for name in ("studies", "tasks"))]


def tasks_of(study_list: list[Study]) -> dict[str, list[str]]:
    """On which tasks each study has runs."""
    return {
        study.name: [task for task in TASKS if any(spec.task == task for spec in study.specs)]
        for study in study_list
    }


def whole(parts: list[dict[str, Any]], wanted: dict[str, list[str]]) -> dict[str, Any]:
    """Parts added up, and what is wanted besides, study by study; p is corrected over all."""
    there = {(study, task) for part in parts for study in part["studies"] for task in part["tasks"]}
    left = {study: [task for task in tasks if (study, task) not in there] for study, tasks in wanted.items()}
    calls = [call for part in parts for call in part["calls"]]
    return {
        **{name: parts[0][name] for name in ("profile", "arms", "device", "packages")},
        "command": "; ".join(part["command"] for part in parts),
        "runs": sum(part["runs"] for part in parts),
        "missing": sum(part["missing"] for part in parts),
        "left": {study: tasks for study, tasks in left.items() if tasks},
        "calls": calls,
        "device_seconds": round(sum(call["seconds"] * call["devices"] for call in calls), 1),
        "again": corrected([row for part in parts for row in part["again"]]),
        "parts": parts,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the runs are put")
    parser.add_argument("--profile", default="paper", choices=PROFILES)
    parser.add_argument("--without", nargs="*", default=[], metavar="ARM", help="arms that are left out")
    parser.add_argument(
        "--sweeps", nargs="*", metavar="STUDY", help="not the arms but these; all unless named"
    )
    parser.add_argument("--tasks", nargs="*", default=TASKS, choices=TASKS, help="those that are trained")
    parser.add_argument("--minutes", type=float, help="stop after so long; the next call goes on")
    parser.add_argument("--workers", type=int, help="shards at once")
    parser.add_argument(
        "--output", type=Path, help="the result's file; one of benchmarks/results unless given"
    )
    parser.add_argument(
        "--committed", type=Path, help="what to compare with; the profile's results unless given"
    )
    asked = parser.parse_args(arguments)
    all_arms = controls.study(asked.profile)
    arms = list(dict.fromkeys(arm for arm, _ in all_arms.runs))
    if unknown := sorted(set(asked.without) - set(arms)):
        raise UserError(f"no arm of the profile {asked.profile} is called {', '.join(unknown)}")
    every = [all_arms] if asked.sweeps is None else sweeps_of(all_arms, [])
    chosen = sweeps_of(all_arms, asked.sweeps) if asked.sweeps else every
    tasks = [task for task in TASKS if task in asked.tasks]

    def only(some: list[Study], of: Sequence[TaskName]) -> list[Study]:
        def wanted(arm: str, spec: Spec) -> bool:
            return arm not in asked.without and spec.task in of

        return [Study(study.name, tuple(run for run in study.runs if wanted(*run))) for study in some]

    chosen = only(chosen, tasks)
    specs = list(dict.fromkeys(spec for study in chosen for spec in study.specs))
    more = ["--profile", asked.profile] if asked.profile != "paper" else []
    more += ["--workers", str(asked.workers)] if asked.workers else []
    more += ["--without", *asked.without] if asked.without else []
    more += ["--sweeps", *asked.sweeps] if asked.sweeps is not None else []
    more += ["--tasks", *tasks] if len(tasks) < len(TASKS) else []
    store = Store(asked.folder)
    record = asked.folder / CALLS
    calls = json.loads(record.read_text()) if record.exists() else []

    before, _ = engine.missing(specs, store)
    started = time.perf_counter()
    try:
        engine.run(specs, store, workers=asked.workers, minutes=asked.minutes, keep_every=30)
    finally:  # an interrupted call counts, too
        seconds = time.perf_counter() - started
        todo, _ = engine.missing(specs, store)
        if before:
            devices = max(1, torch.cuda.device_count())
            calls.append({"seconds": round(seconds, 1), "devices": devices, "runs": len(before) - len(todo)})
            asked.folder.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(calls))
    shards = store.shards({spec.spec_id for spec in specs} - {spec.spec_id for spec in todo})
    committed = Store(asked.committed) if asked.committed else studies.store(asked.profile)
    part = {
        **circumstances(),
        "command": shlex.join(["python", "benchmarks/from_nothing.py", "FOLDER", *more]),
        "profile": asked.profile,
        "arms": [arm for arm in arms if arm not in asked.without],
        "studies": [study.name for study in chosen],
        "tasks": tasks,
        "runs": len(specs) - len(todo),
        "missing": len(todo),
        "calls": calls,
        "shards": [
            {"models": s["shard_models"], "seconds": s["shard_seconds"], "device": s["device"]}
            for s in shards
        ],
        "again": [row for study in chosen for row in again(study, committed, store)],
    }
    name = "from_nothing.json" if asked.sweeps is None else "from_nothing-sweeps.json"
    output = asked.output or Path(__file__).parent / "results" / name
    told = whole([*kept(output, part), part], tasks_of(only(every, TASKS)))
    output.write_text(json.dumps(told, indent=1) + "\n")

    console = Console()
    rows = told["again"]
    other = [row for row in rows if row["p"] is not None and row["p"] < LEVEL]
    console.print(
        f"{len(rows)} means held against the committed ones; {len(other)} differ (corrected p < {LEVEL})"
    )
    for row in other:
        first, second, low, high = (f"{100 * row[name]:.2f}" for name in ("first", "second", "low", "high"))
        what = f"{row['task']} {row['arm']} {row['column']}"
        console.print(f"  {what}: {first} %, then {second} %; difference {low} to {high} points")
    console.print(
        f"{told['runs']} of {told['runs'] + told['missing']} runs in {told['device_seconds'] / 60:.1f} device-minutes"
        f" over {len(told['calls'])} calls on {told['device']}; {output}"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
