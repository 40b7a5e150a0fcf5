"""The same training by five programs: model-steps a second, from 1 to 256 models, in one table.

    python benchmarks/peers_speed.py            everything that fits in --minutes (8 unless given)
    python benchmarks/peers_speed.py --quick    small numbers of models, few steps

Cells that the table holds already, of this device and these versions, stay and are not measured again (--anew: they
are), so that the time there is goes to those left out.

All start from the same weights and take the same batches, which lie ready on the device; a round of steps ends
when its losses are with the host. Every first round's losses are held against this project's. Rounds of all rows
alternate; the table gives medians. Each row runs in a process of its own (`peers`). Set-up (compiling, recording,
tuning, the first round) is timed apart; on eight cores or more the rows set up side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from peers import ONE_AT_A_TIME, ROWS
from peers.floor import floor
from peers.work import Problem, work
from peers.worker import Worker
from sparsity_moves.studies.engine import cores

ADD7 = [Problem("add7", "dense"), Problem("add7", "moe")]
MODULAR = [Problem("modular_addition", "dense"), Problem("modular_addition", "moe")]

TOLERANCE = {"fp32": 2e-3, "tf32": 2e-2}
"""Largest difference of any step's loss from this project's, over that loss. TF32 has ten bits of mantissa."""

ASTRAY = 1 / 16
"""Share of the models whose losses may differ by more where experts are chosen: rounding sends a token whose two best
experts are all but equal to the other one, and that model goes another way from there. The table tells how many."""

LIMIT = 240.0
"""Seconds that one row's set-up may take."""

Cell = tuple[Problem, int]


def plan(device: str, quick: bool) -> list[Cell]:
    """Problems and numbers of models, the most telling first: what time does not allow for is left out at the end."""
    if quick:
        return [(problem, models) for models in (4, 1) for problem in ADD7]
    if device == "cpu":
        cells = [(problem, models) for models in (16, 1, 4) for problem in ADD7]
        return cells + [(problem, 1) for problem in MODULAR] + [(problem, 64) for problem in ADD7]
    return [(problem, models) for models in (64, 1, 256, 16, 4) for problem in ADD7 + MODULAR]


def steps_of(problem: Problem, device: str, quick: bool) -> int:
    """Steps a round."""
    return 8 if quick or (device == "cpu" and problem.task != "add7") else 32


def differences(losses: list[list[float]], reference: list[list[float]]) -> list[float]:
    """Each model's largest relative one; `losses` may be of the first models only. NaN where a loss is."""
    given, wanted = torch.tensor(losses), torch.tensor(reference)
    wanted = wanted[:, : given.shape[1]]
    return ((given - wanted) / wanted).abs().amax(0).tolist()


def agreement(problem: Problem, losses: list[list[float]], reference: list[list[float]]) -> dict[str, Any]:
    """The largest difference, how many models are beyond the tolerance, and whether that is to be expected."""
    off = differences(losses, reference)
    spec = problem.specs(1, 1)[0]
    astray = sum(not value <= TOLERANCE[spec.precision] for value in off)  # NaN is
    lost = any(math.isnan(value) for value in off)
    return {
        "loss_difference": math.nan if lost else max(off),
        "astray": astray,
        "agrees": not lost and astray <= (ASTRAY * len(off) if spec.experts > 1 else 0),
    }


class Bench:
    def __init__(self, rows: str, device: str, quick: bool, console: Console) -> None:
        self.device, self.quick, self.console = device, quick, console
        self.workers = {row: Worker(row, device) for row in rows}
        self.prepared: dict[tuple[str, Problem], dict[str, Any]] = {}
        """Of the rows that train one model at a time: once for each problem."""

    def ask_all(self, requests: dict[str, tuple[Any, ...]], alone: bool) -> dict[str, dict[str, Any]]:
        """Every row's answer to its request: one after another where `alone`, else at the same time."""
        answers = {}
        if not alone:
            for row, request in requests.items():
                self.workers[row].ask(*request)
        started = time.perf_counter()
        for row, request in requests.items():
            if alone:
                self.workers[row].ask(*request)
                started = time.perf_counter()
            answers[row] = self.workers[row].answer(max(1.0, LIMIT - (time.perf_counter() - started)))
        return answers

    def cell(self, problem: Problem, models: int) -> dict[str, dict[str, Any]]:
        """Prepare, check and time all rows; gives a record a row."""
        steps = steps_of(problem, self.device, self.quick)
        requests: dict[str, tuple[Any, ...]] = {}
        for row in self.workers:
            size = 1 if row in ONE_AT_A_TIME else models
            if (row, problem) not in self.prepared:
                requests[row] = ("prepare", problem, size, steps)
        record = self.ask_all(requests, alone=cores() < 8)
        for row in ONE_AT_A_TIME:
            if row in record:
                self.prepared[row, problem] = record[row]
            elif row in self.workers:
                record[row] = self.prepared[row, problem]
        reference = record.get("e", {}).get("losses")
        record = {row: dict(record[row]) for row in sorted(record)}
        for seen in record.values():
            if reference and "losses" in seen:
                seen |= agreement(problem, seen["losses"], reference)
        rounds, seconds = (2, 0.2) if self.quick else (5, 0.3)
        started = time.perf_counter()
        for number in range(rounds):
            if number >= 2 and time.perf_counter() - started > 10:
                break  # long rounds vary little
            for row, seen in record.items():
                if "reason" in seen:
                    continue
                size = 1 if row in ONE_AT_A_TIME else models
                self.workers[row].ask("measure", problem, size, seconds)
                answer = self.workers[row].answer(LIMIT)
                if "reason" in answer:
                    seen["reason"] = answer["reason"]
                else:
                    seen.setdefault("rates", []).append(answer["rate"])
        for row, seen in record.items():
            seen.pop("losses", None)
            if row not in ONE_AT_A_TIME and "reason" not in seen:
                self.workers[row].ask("drop", problem, models)
                self.workers[row].answer(LIMIT)
            if "rates" in seen and "reason" not in seen:
                seen["model_steps_per_second"] = statistics.median(seen["rates"])
                if "rates" in record.get("a", {}):
                    pairs = zip(seen["rates"], record["a"]["rates"], strict=False)
                    seen["times_a"] = statistics.median(own / plain for own, plain in pairs)
        return record

    def ceilings(self) -> dict[str, float]:
        """The device's rates now. A first request that changes nothing waits until all processes are there."""
        self.ask_all(dict.fromkeys(self.workers, ("clear",)), alone=False)
        worker = self.workers[next(row for row in "eabc" if row in self.workers)]
        worker.ask("ceilings")
        return worker.answer(LIMIT)

    def end(self) -> None:
        for worker in self.workers.values():
            worker.end(patience=5.0)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "jax", "jaxlib"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def command(arguments: list[str]) -> str:
    """What was called; where its table was put is of no interest."""
    at = arguments.index("--output") if "--output" in arguments else len(arguments)
    return shlex.join(["python", "benchmarks/peers_speed.py", *arguments[:at], *arguments[at + 2 :]])


def kept(target: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The table's cells, if they are of the same device and versions; takes over what goes with them."""
    if not target.exists():
        return []
    before = json.loads(target.read_text())
    if any(before.get(name) != record[name] for name in ("device", "versions", "tolerance")):
        return []
    record["command"] = "; ".join(dict.fromkeys([before["command"], record["command"]]))
    record["ceilings"] = before.get("ceilings", {})
    record["seconds"] = before.get("seconds", 0.0)
    cells: list[dict[str, Any]] = before["cells"]
    return cells


def table(record: dict[str, Any]) -> tuple[Table, list[str]]:
    """One row a problem and program, and sentences on what is not there or not right."""
    sizes = sorted({cell["models"] for cell in record["cells"]})
    shown = Table(
        "", "program", *(f"M = {size}" for size in sizes), "× (a)", "of the floor", "set-up, s", "loss"
    )
    for column in shown.columns[2:]:
        column.justify = "right"
    said: dict[str, list[str]] = {}
    for problem in dict.fromkeys(cell["problem"] for cell in record["cells"]):
        cells = {cell["models"]: cell["rows"] for cell in record["cells"] if cell["problem"] == problem}
        for row in sorted({row for rows in cells.values() for row in rows}):
            of_size = {size: rows[row] for size, rows in cells.items() if row in rows}
            known = {s: seen for s, seen in of_size.items() if "model_steps_per_second" in seen}
            for size, seen in of_size.items():
                place = problem + ("" if row in ONE_AT_A_TIME else f" M = {size}")
                reasons = [f"not available here: {seen['reason']}"] if "reason" in seen else []
                reasons += [f"form '{form}' failed: {why}" for form, why in seen.get("failed", {}).items()]
                if seen.get("agrees") is False:
                    off = seen["loss_difference"]
                    reasons.append(f"LOSSES DIFFER by up to {off:.1e}, more than {record['tolerance']}")
                for why in reasons:
                    places = said.setdefault(f"({row}) {ROWS[row][0]}: {why}", [])
                    places += [place] if place not in places else []
            name, marks = f"({row}) {ROWS[row][0]}", []
            if row in ONE_AT_A_TIME and known:
                median = statistics.median(seen["model_steps_per_second"] for seen in known.values())
                wrong = "" if all(seen.get("agrees", True) for seen in known.values()) else " ✗"
                marks = [f"{median:,.0f}{wrong}" if size == sizes[0] else "=" for size in sizes]
            else:
                for size in sizes:
                    wrong = "" if of_size.get(size, {}).get("agrees", True) else " ✗"
                    marks.append(
                        f"{known[size]['model_steps_per_second']:,.0f}{wrong}" if size in known else "–"
                    )
            best = 64 if 64 in known else max(known, default=0)
            seen = known.get(best, {})
            if seen:
                marks.append(f"{seen['times_a']:.1f}" if "times_a" in seen else "–")
                off = max(s.get("loss_difference", float("nan")) for s in known.values())
                marks += [f"{seen['of_floor']:.1%}", f"{seen['setup']:.1f}", f"{off:.0e}"]
                name += f" [{seen['form']}]"
            shown.add_row(problem, name.replace("[", r"\["), *marks)
        shown.add_section()
    notes = [f"{sentence} ({'; '.join(places)})" for sentence, places in said.items()]
    return shown, notes + record["left_out"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="4 models at most, few steps")
    parser.add_argument(
        "--rows", default="abcde", help="which programs, by letter; e for the check, a for the ratio"
    )
    parser.add_argument("--models", type=int, nargs="*", help="of these numbers of models alone")
    parser.add_argument("--minutes", type=float, default=8.0, help="no cell begins that may end later")
    parser.add_argument("--anew", action="store_true", help="measure again what the table holds")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="the GPU if there is one")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {cores()} cores"
    console = Console(width=max(140, Console().width))
    cells = [cell for cell in plan(device, given.quick) if not given.models or cell[1] in given.models]
    bench = Bench(given.rows, device, given.quick, console)
    record: dict[str, Any] = {
        "device": name,
        "versions": versions(),
        "command": command(sys.argv[1:] if arguments is None else arguments),
        "load_before": os.getloadavg()[0],
        "tolerance": TOLERANCE,
        "unit": "model-steps a second",
        "cells": [],
        "left_out": [],
        "ceilings": {},
        "seconds": 0.0,
    }
    kind = name.lower().replace(" ", "-") if device == "cuda" else "cpu"
    target = given.output / f"peers-{kind}{'-quick' if given.quick else ''}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not given.anew:
        record["cells"] = kept(target, record)
    order = {(str(problem), models): place for place, (problem, models) in enumerate(cells)}
    measured = {(cell["problem"], cell["models"]) for cell in record["cells"]}
    before, longest = record["seconds"], 0.0
    try:
        ceilings = bench.ceilings()
        for problem, models in cells:
            if (str(problem), models) in measured:
                continue
            begun = time.perf_counter()
            if begun - started + longest > given.minutes * 60:
                record["left_out"].append(f"{problem}, M = {models}: left out, the time was up")
                continue
            rows = bench.cell(problem, models)
            record["cells"].append({"problem": str(problem), "models": models, "rows": rows})
            record["cells"].sort(key=lambda cell: order[cell["problem"], cell["models"]])
            longest = 0.5 * longest + 0.5 * (time.perf_counter() - begun)
            speeds = (f"({row}) {seen.get('model_steps_per_second', 0):,.0f}" for row, seen in rows.items())
            console.print(f"{time.perf_counter() - started:4.0f} s  {problem}, M = {models}:", *speeds)
            record["seconds"] = round(before + time.perf_counter() - started, 1)
            target.write_text(
                json.dumps(record, indent=1) + "\n"
            )  # what is measured stays, whatever comes next
        again = bench.ceilings()  # the machine may have been busy at the start
        earlier = record["ceilings"]
        record["ceilings"] = {r: max(ceilings[r], again[r], earlier.get(r, 0.0)) for r in ceilings}
    finally:
        bench.end()
    given_work = {problem: work(problem, 1, 1) for problem in dict.fromkeys(problem for problem, _ in cells)}
    record["floor_seconds"] = {str(p): floor(w, record["ceilings"]) for p, w in given_work.items()}
    for cell in record["cells"]:
        for seen in cell["rows"].values():
            if "model_steps_per_second" in seen:
                least = record["floor_seconds"][cell["problem"]]
                seen["of_floor"] = seen["model_steps_per_second"] * least
    target.write_text(json.dumps(record, indent=1) + "\n")
    shown, notes = table(record)
    if device == "cpu" and record["load_before"] > 0.25 * cores():
        notes.append(
            f"THE MACHINE WAS BUSY (load {record['load_before']:.1f} before the start, {cores()} cores): rows "
            "that use several threads suffer most, so take no ratio from this table"
        )
    console.print(f"{name}; {record['versions']}; {record['command']}")
    ceiling = record["ceilings"]
    console.print(
        f"model-steps a second; × (a) and the floor at M = 64, or the most there is; the floor: products at "
        f"{ceiling['fp32'] / 1e12:.2f} (fp32) or {ceiling['tf32'] / 1e12:.2f} (TF32) TFLOP/s, "
        f"bytes at {ceiling['copy'] / 1e9:,.0f} GB/s, as measured here"
    )
    console.print(shown)
    for note in notes:
        console.print(note, markup=False)


if __name__ == "__main__":
    main()
