"""Train what the store misses: shards of a fleet each, over the processors there are.

On a CPU every shard runs in a process of its own with one thread, as many at a time as there are cores; two
single-threaded processes beat one with two threads. With CUDA one process trains shard after shard. A shard's
runs are measured and stored by the process that trained them, so that a killed run loses the shards in flight
and no more.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from queue import Empty
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sparsity_moves.errors import UserError
from sparsity_moves.measures import measure
from sparsity_moves.model import count
from sparsity_moves.store import Broken, Store
from sparsity_moves.store.tables import checkpoint_name
from sparsity_moves.training import Spec, train

STACK = {"cpu": 8, "cuda": 64}
"""Models a fleet. On a CPU, eight of add-7 take a tenth less time than twice four, and sixteen gain no more."""


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Shard:
    """Runs that are trained together."""

    specs: tuple[Spec, ...]

    @property
    def cost(self) -> float:
        """Forward FLOPs, roughly: what progress and order go by."""
        spec = self.specs[0]
        sequences = spec.batch or len(spec.task_object.training_pool(spec.seed, 0, spec.pool))
        tokens = len(spec.task_object.read_out) * sequences
        overhead = 2e6  # what a step costs beside its products, in the same unit
        return len(self.specs) * spec.steps * (tokens * count(spec.architecture).flops_per_token + overhead)


def shards(specs: Iterable[Spec], stack: int) -> list[Shard]:
    """Fleets of at most `stack` runs that differ in their seeds only, the costliest first."""
    groups: dict[Spec, dict[str, Spec]] = defaultdict(dict)
    for spec in specs:
        groups[spec.shape][spec.spec_id] = spec
    cut = [
        Shard(tuple(list(group.values())[i : i + stack]))
        for group in groups.values()
        for i in range(0, len(group), stack)
    ]
    return sorted(cut, key=lambda shard: -shard.cost)


def missing(specs: Sequence[Spec], store: Store, moment: str | None = None) -> tuple[list[Spec], list[str]]:
    """Runs to train, and one sentence for each damaged thing that has been set aside for it.

    Where a `moment` is named, a run whose parameters then are not stored is to be trained too.
    """
    lost = store.set_tables_aside() if store.tables.damage() else {}
    todo, said = [], list(lost.values())
    for spec in dict.fromkeys(specs):
        if (store.runs / spec.spec_id).exists():
            try:
                store.record(spec.spec_id)
            except Broken as broken:
                aside = store.set_aside(spec.spec_id)
                said.append(f"{broken}; the run was set aside as {aside} and is trained again")
                todo.append(spec)
                continue
        if (
            not store.has(spec)
            or (moment and not store.has(spec, moment))
            or checkpoint_name(spec.spec_id) in lost
        ):
            todo.append(spec)
    return todo, said


def keep_memory() -> None:
    """Have glibc's malloc keep what is freed, so that every step finds the last step's pages.

    A step frees and asks again for the same few megabytes. Given back to the system and faulted in anew, they
    cost more than the products they hold: on a virtual machine a factor of two. Elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    for option, size in ((mmap_threshold, 32 << 20), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20)):
        mallopt(option, size)


_heard: Any = None


def _prepare(heard: Any, parent: int) -> None:
    """Start of a worker: one thread, and an end when the parent ends, however it does."""
    global _heard
    _heard = heard
    torch.set_num_threads(1)
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(number: int, shard: Shard, store: Store, device: str, checkpoints: Collection[str] | None) -> int:
    """Train, measure and store one shard."""
    started = time.perf_counter()
    told = time.monotonic()

    def tell(step: int) -> None:
        nonlocal told
        if time.monotonic() - told > 0.2:
            told = time.monotonic()
            _heard.put((number, step / shard.specs[0].steps))

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = train(list(shard.specs), device, tell)
    rows = measure(runs, device)
    circumstances = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "packages": {name: version(name) for name in ("torch", "sparsity-moves")},
        "shard_models": len(runs),
        "shard_seconds": round(time.perf_counter() - started, 3),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }
    for run, row in zip(runs, rows, strict=True):
        store.save(run, row, circumstances, checkpoints)
    return number


class _Lines:
    """Progress for a log file: a line now and then."""

    def __init__(self, total: float) -> None:
        self.total, self.started, self.last = total, time.monotonic(), 0.0

    def show(self, done: float, text: str) -> None:
        now = time.monotonic()
        if now - self.last > 15:
            self.last, spent = now, now - self.started
            left = f", about {spent / done * (self.total - done):.0f} s left" if done > 0 else ""
            print(f"training: {done / self.total:.0%} of the work, {text}{left}", file=sys.stderr, flush=True)


def run(
    specs: Sequence[Spec],
    store: Store,
    *,
    workers: int | None = None,
    stack: int | None = None,
    checkpoints: Collection[str] | None = None,
    moment: str | None = None,
    quiet: bool = False,
) -> int:
    """Train what is missing among `specs`; gives how many runs were trained.

    Args:
        specs: the runs that are wanted.
        store: where they are looked for and put.
        workers: processes at once; as many as there are cores or GPUs unless given.
        stack: models a fleet, at most; `STACK` unless given.
        checkpoints: moments whose parameters are kept; all of them unless given.
        moment: one whose parameters are wanted: a run that is stored without them is trained again.
        quiet: no progress.

    Shows progress with the time left, unless quiet. Raises `UserError` where a worker dies or the disk refuses;
    whatever finished before is kept, and the next call goes on from there.
    """
    if workers is not None and workers < 1:
        raise UserError(f"training needs at least one worker, not {workers}")
    store.sweep()
    todo, said = missing(specs, store, moment)
    for sentence in said:
        print(sentence, file=sys.stderr)
    if not todo:
        return 0
    device = device_name()
    queue = shards(todo, stack or STACK[device])
    workers = 1 if device == "cuda" else min(workers or cores(), len(queue))
    total = sum(shard.cost for shard in queue)
    share = [0.0] * len(queue)
    finished = 0
    context = get_context("spawn")
    heard = context.Queue()
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} % · {task.fields[text]}"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        disable=quiet or not (console.is_terminal or console.is_jupyter),
    )
    lines = None if quiet or console.is_terminal or console.is_jupyter else _Lines(total)
    with bar, ProcessPoolExecutor(workers, context, _prepare, (heard, os.getpid())) as pool:
        task = bar.add_task("", total=total, text="starting")
        pending: set[Future[int]] = {
            pool.submit(_work, i, shard, store, device, checkpoints) for i, shard in enumerate(queue)
        }
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    number = future.result()
                    share[number] = 1.0
                    finished += len(queue[number].specs)
                try:
                    while True:
                        number, part = heard.get_nowait()
                        share[number] = max(share[number], part)
                except Empty:
                    pass
                gone = sum(s * shard.cost for s, shard in zip(share, queue, strict=True))
                text = f"{finished} of {len(todo)} models"
                bar.update(task, completed=gone, text=text)
                if lines:
                    lines.show(gone, text)
        except BrokenProcessPool:
            raise UserError(
                f"a training process was ended from outside (out of memory?); {finished} finished runs are kept, "
                "and the same command goes on from there"
            ) from None
        finally:
            for future in pending:
                future.cancel()
            if sys.exc_info()[0] is not None:  # let no worker go on with what nobody waits for
                for process in list((pool._processes or {}).values()):
                    process.terminate()
    return len(todo)
