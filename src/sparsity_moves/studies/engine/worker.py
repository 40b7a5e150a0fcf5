"""What a worker does, wherever it runs: train a shard, measure it, and give its runs as files."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import version

import torch

from sparsity_moves.measures import measure
from sparsity_moves.store.run_files import RunFiles, encode
from sparsity_moves.studies.engine.planning import Shard
from sparsity_moves.studies.keeping import kept
from sparsity_moves.training import train


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


def train_shard(
    shard: Shard, checkpoints: Collection[str] | None, tell: Callable[[float], None], every: float
) -> Iterator[tuple[str, RunFiles]]:
    """Each run's spec_id and files; `tell` hears the share done, at most once in so many seconds."""
    device = device_name()
    started = told = time.perf_counter()

    def progress(step: int) -> None:
        nonlocal told
        if time.perf_counter() - told > every:
            told = time.perf_counter()
            tell(step / shard.specs[0].steps)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = train(list(shard.specs), device, progress)
    rows = measure(runs, device)
    circumstances = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "packages": {name: version(name) for name in ("torch", "sparsity-moves")},
        "shard_models": len(runs),
        "shard_seconds": round(time.perf_counter() - started, 3),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }
    for run, row in zip(runs, rows, strict=True):
        moments = kept(run.spec) if checkpoints is None else checkpoints
        yield run.spec.spec_id, encode(run, row, circumstances, moments)
