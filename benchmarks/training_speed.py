"""Model-steps a second on add-7: a plain PyTorch loop against the fleet, side by side, in one run.

    make bench

Rounds of both alternate, so that a busy machine slows both; the table gives medians and the range of the ratio.
The plain loop uses all cores through PyTorch's threads, as a user would find it; `two processes` is the same
loop, one single-threaded process a core. The floor is the products that the answers need (queries and FFN at
the answer positions only, forward and backward), over the matmul rate measured in the same run.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import plain_loop
from sparsity_moves.studies import arm
from sparsity_moves.studies.engine import STACK, cores, keep_memory
from sparsity_moves.training import Fleet
from sparsity_moves.training.data import batches

together: Barrier
"""Of the processes that are timed, in each of them."""
ARMS = ("dense", "narrow", "glu", "moe", "moe_glu")
WARM, STEPS, ROUNDS = 10, 50, 5


def plain(name: str, steps: int) -> tuple[float, float]:
    """Seconds of `steps` steps of one model, and the mean loss of the last ten."""
    run = plain_loop.train(name, WARM + steps)
    for _ in range(WARM):
        next(run)
    started = time.perf_counter()
    losses = list(run)
    return time.perf_counter() - started, statistics.mean(losses[-10:])


def fleet(name: str, steps: int) -> tuple[float, float]:
    """The same for a fleet of `STACK` models."""
    keep_memory()
    specs = [arm(name, "paper", "add7", seed) for seed in range(STACK["cpu"])]
    models = Fleet([dataclasses.replace(spec, steps=WARM + steps) for spec in specs])
    data = batches(models.specs, models.device)
    for _ in range(WARM):
        models.step(*next(data))
    started = time.perf_counter()
    losses = [models.step(*batch).mean().item() for batch in data]
    return time.perf_counter() - started, statistics.mean(losses[-10:])


def _prepare(barrier: Barrier) -> None:
    global together
    together = barrier
    torch.set_num_threads(1)


def _one(work: Callable[[str, int], tuple[float, float]], name: str, steps: int) -> tuple[float, float]:
    work(name, 5)
    together.wait()
    return work(name, steps)


def on_every_core(
    work: Callable[[str, int], tuple[float, float]], name: str, steps: int
) -> tuple[float, float]:
    """One single-threaded process a core, started together: the slowest one's seconds, the mean loss."""
    context = get_context("spawn")
    # Which ends the others where one dies, instead of waiting for it.
    with ProcessPoolExecutor(cores(), context, _prepare, (context.Barrier(cores()),)) as pool:
        results = [each.result() for each in [pool.submit(_one, work, name, steps) for _ in range(cores())]]
    return max(r[0] for r in results), statistics.mean(r[1] for r in results)


def matmul_rate(size: int = 1024) -> float:
    """FLOP/s of a square fp32 product on all cores."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def floor_flops(name: str) -> float:
    """FLOPs of the products one step cannot do without, forward and backward."""
    spec = arm(name, "paper", "add7", 0)
    ffn, d, task = spec.architecture.ffn, spec.d_model, spec.task_object
    answers = len(task.read_out)
    hidden = ffn.expert_width * ffn.top_k
    attention = 2 * d * d + 4 * task.length * d  # output matrix; scores and mixture
    forward = answers * (2 * d * hidden * (3 if ffn.gated else 2) + attention + 2 * d * task.classes)
    return 3.0 * spec.batch * forward


def main() -> None:
    console = Console()
    rate = matmul_rate()
    rows: dict[str, dict[str, list[float]]] = {
        name: {"plain": [], "plain, a process a core": [], "fleet": [], "losses": []} for name in ARMS
    }
    for _ in track(range(ROUNDS), "measuring", console=console):
        for name in ARMS:
            seconds, loss = plain(name, STEPS)
            rows[name]["plain"].append(STEPS / seconds)
            seconds, _ = on_every_core(plain, name, STEPS)
            rows[name]["plain, a process a core"].append(cores() * STEPS / seconds)
            seconds, ours = on_every_core(fleet, name, STEPS)
            rows[name]["fleet"].append(cores() * STACK["cpu"] * STEPS / seconds)
            rows[name]["losses"].append(ours - loss)
    table = Table("arm", "plain", "plain, a process a core", "fleet", "fleet / plain (range)", "of the floor")
    record: dict[str, Any] = {}
    for name, columns in rows.items():
        ratios = [f / p for f, p in zip(columns["fleet"], columns["plain"], strict=True)]
        speed = {
            key: statistics.median(columns[key]) for key in ("plain", "plain, a process a core", "fleet")
        }
        reached = speed["fleet"] * floor_flops(name) / rate
        table.add_row(
            name,
            *(f"{value:.0f}" for value in speed.values()),
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{reached:.0%}",
        )
        record[name] = speed | {
            "ratios": ratios,
            "of_floor": reached,
            # One plain seed against the mean of eight others: seeds differ. Equal starts: tests/test_benchmarks.py.
            "loss_difference": statistics.mean(columns["losses"]),
        }
    # An overall figure, beside the arms' own: one step of each arm, so the sums are of seconds a step.
    each = {k: [[1 / v for v in rows[name][k]] for name in ARMS] for k in ("plain", "fleet")}
    plain_s, fleet_s = ([sum(arm_[i] for arm_ in each[k]) for i in range(ROUNDS)] for k in ("plain", "fleet"))
    ratios = [p / f for p, f in zip(plain_s, fleet_s, strict=True)]
    table.add_section()
    overall = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    table.add_row("all arms, a step of each", "", "", "", overall, "")
    record["all arms, a step of each"] = {"ratios": ratios}
    console.print(f"add-7, batch 128, model-steps a second, {cores()} cores, matmul {rate / 1e9:.0f} GFLOP/s")
    console.print(table)
    target = Path(__file__).parent / "results" / "training_speed-cpu.json"
    target.parent.mkdir(exist_ok=True)
    about = {"cores": cores(), "matmul_gflops": rate / 1e9, "torch": version("torch"), "rounds": ROUNDS}
    target.write_text(json.dumps({"about": about, "model_steps_per_second": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
