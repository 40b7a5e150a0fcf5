"""The local engine where there are NVIDIA GPUs: a process a GPU, pinned to it, that trains a few fleets.

A small fleet leaves a part of a GPU idle, most of it between its kernels; each fleet runs in a thread and a stream
of its own, so that the others' kernels fill the gaps. Processes would not: a GPU serves one at a time. What a thread
does in Python (looks, measures, compiling kernels) holds up the others, but a recorded step needs next to none. A
shard's runs are stored by the process that trained them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection
from contextlib import nullcontext
from multiprocessing import get_context
from queue import Empty
from typing import Any

import torch

from sparsity_moves.errors import UserError
from sparsity_moves.kernels.precision import beside
from sparsity_moves.processes import end_with
from sparsity_moves.store import Store
from sparsity_moves.studies.engine.planning import Shard
from sparsity_moves.studies.engine.worker import prepare, train_and_store

AT_ONCE = 4
"""Fleets a GPU."""


def visible_gpus() -> list[str]:
    """The names by which `CUDA_VISIBLE_DEVICES` knows the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


class Finished:
    """Said of a shard whose runs are stored."""


def _serve(gpu: str, tasks: Any, heard: Any, parent: int, at_once: int) -> None:
    """A GPU's process: takes shards until it is ended, or its parent is, however that ends."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    end_with(parent)
    for _ in range(at_once):
        threading.Thread(target=_take, args=(tasks, heard), daemon=True).start()
    threading.Event().wait()


def _take(tasks: Any, heard: Any) -> None:
    """Train, measure and store one shard after another."""
    on_gpu = torch.cuda.is_available()
    with torch.cuda.stream(torch.cuda.Stream()) if on_gpu else nullcontext():
        while True:
            number, shard, store, checkpoints, keep_every = tasks.get()

            def tell(part: float | str, number: int = number) -> None:
                heard.put((number, part))

            try:
                train_and_store(shard, store, checkpoints, keep_every, tell)
                if on_gpu:
                    with beside("fp32"):  # nobody in this process is recording a step meanwhile
                        torch.cuda.empty_cache()  # other processes want what is free
                heard.put((number, Finished()))
            except Exception as error:  # the parent decides
                heard.put((number, error))


class GpuEngine:
    """Processes of this machine, one a GPU. See `Engine` for what the methods promise."""

    device = "cuda"

    def __init__(
        self,
        store: Store,
        checkpoints: Collection[str] | None,
        workers: int | None,
        keep_every: float,
        gpus: list[str],
    ) -> None:
        self.work = (store, checkpoints, keep_every)
        context = get_context("spawn")
        self.tasks, self.heard = context.Queue(), context.Queue()
        self.slots = workers or AT_ONCE * len(gpus)
        homes = gpus[: self.slots]
        share = [self.slots // len(homes) + (i < self.slots % len(homes)) for i in range(len(homes))]
        self.processes = [
            context.Process(target=_serve, args=(gpu, self.tasks, self.heard, os.getpid(), n), daemon=True)
            for gpu, n in zip(homes, share, strict=True)
        ]
        for process in self.processes:
            process.start()

    def submit(self, number: int, shard: Shard) -> None:
        self.tasks.put((number, shard, *self.work))

    def poll(self, seconds: float) -> tuple[dict[int, float], list[int], list[str]]:
        parts: dict[int, float] = {}
        finished: list[int] = []
        said: list[str] = []
        wait = seconds
        try:
            while True:
                number, what = self.heard.get(timeout=wait)
                wait = 0.01  # what is there besides
                if isinstance(what, Finished):
                    finished.append(number)
                elif isinstance(what, Exception):
                    raise what
                elif isinstance(what, str):
                    said.append(what)
                else:
                    parts[number] = what
        except Empty:
            pass
        if not finished and not all(process.is_alive() for process in self.processes):
            raise UserError("a training process was ended from outside (out of memory?)")
        return parts, finished, said

    def close(self) -> None:
        """Let no process go on with what nobody waits for."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
