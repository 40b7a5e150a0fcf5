"""What a worker does, wherever it runs: train a shard, measure it, and give its runs as files."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import version
from typing import Any

import torch

from sparsity_moves.measures import measure, measure_families
from sparsity_moves.store import Broken, Store
from sparsity_moves.store.run_files import RunFiles, encode
from sparsity_moves.store.unfinished import Unfinished
from sparsity_moves.studies.engine.planning import Shard
from sparsity_moves.studies.keeping import kept
from sparsity_moves.studies.measuring import wanted
from sparsity_moves.training import State, train

KEEP_EVERY = 60.0
"""Seconds between two states of a shard: shorter shards never pay for one."""

_MEASURING = threading.Lock()
"""One shard of a process at a time: measures want memory, and mostly Python, which runs one thread at a time."""

SECONDS = "seconds"
"""In a state: what went into it so far."""


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def prepare() -> None:
    """One thread a process: two processes of one thread beat one of two, and sums have one order."""
    torch.set_num_threads(1)
    keep_memory()


def circumstances() -> dict[str, Any]:
    """Device and packages: what decides a run's bits, beside its settings."""
    return {
        "device": torch.cuda.get_device_name() if device_name() == "cuda" else "cpu",
        "packages": {name: version(name) for name in ("torch", "sparsity-moves")},
    }


def unfinished(shard: Shard, store: Store) -> Unfinished:
    """Where the shard's state is kept until it is stored."""
    about = {name: str(value) for name, value in circumstances().items()}
    return Unfinished(store.root, shard.spec_ids, about)


def train_and_store(
    shard: Shard,
    store: Store,
    checkpoints: Collection[str] | None,
    keep_every: float,
    tell: Callable[[float | str], None],
) -> None:
    """Train, measure and store one shard; `tell` hears the share done, and sentences."""
    left = unfinished(shard, store)
    for spec_id, files in train_shard(shard, checkpoints, tell, 0.2, left, keep_every, tell):
        store.put(spec_id, files)
    left.remove()


def train_shard(
    shard: Shard,
    checkpoints: Collection[str] | None,
    tell: Callable[[float], None],
    every: float,
    left: Unfinished | None = None,
    keep_every: float = KEEP_EVERY,
    say: Callable[[str], None] = lambda sentence: None,
) -> Iterator[tuple[str, RunFiles]]:
    """Each run's spec_id and files.

    Args:
        shard: what is trained.
        checkpoints: moments whose parameters are kept; those that `keeping` says unless given.
        tell: hears the share done, at most once in `every` seconds.
        every: see `tell`.
        left: where an interrupted training left its state, and this one leaves its own; nowhere unless given.
        keep_every: seconds between two states.
        say: hears a sentence where the training goes on from a state, or cannot.
    """
    device = device_name()
    started = told = time.perf_counter()
    start, before = _resumed(shard, left, say)

    def progress(step: int) -> None:
        nonlocal told
        if time.perf_counter() - told > every:
            told = time.perf_counter()
            tell(step / shard.specs[0].steps)

    def seconds() -> float:
        return before + time.perf_counter() - started

    def keep(state: State) -> None:
        if left is not None:
            left.save(state | {SECONDS: torch.tensor(seconds(), dtype=torch.double)})

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = train(list(shard.specs), device, progress, start=start, keep=keep, keep_every=keep_every)
    with _MEASURING:
        rows = measure(runs, device)
        families = measure_families(runs, [wanted(run.spec) for run in runs], device)
    about = {
        **circumstances(),
        "shard_models": len(runs),
        "shard_seconds": round(seconds(), 3),
        # Of the process: of two fleets, where two are side by side in it.
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }
    for run, row, tables in zip(runs, rows, families, strict=True):
        moments = kept(run.spec) if checkpoints is None else checkpoints
        yield run.spec.spec_id, encode(run, row, about, moments, tables)


def _resumed(shard: Shard, left: Unfinished | None, say: Callable[[str], None]) -> tuple[State | None, float]:
    """The state to go on from, if there is one, and the seconds that went into it."""
    try:
        state = None if left is None else left.load()
    except Broken as why:
        say(f"{why}; its models are trained from the start")
        return None, 0.0
    if state is None:
        return None, 0.0
    spec = shard.specs[0]
    models = (
        f"{len(shard.specs)} models of {spec.task}" if len(shard.specs) > 1 else f"a model of {spec.task}"
    )
    say(f"training {models} goes on from step {int(state['fleet.steps_done'])} of {spec.steps}")
    return state, float(state[SECONDS])
