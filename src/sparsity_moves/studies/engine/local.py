"""The local engine where there is no GPU: a process a core, each with one thread.

A shard's runs are measured and stored by the process that trained them, so that a killed run loses the shards in
flight and no more; of a long one no more than what came after its last state.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from queue import Empty
from typing import Any

from sparsity_moves.errors import UserError
from sparsity_moves.processes import end_with
from sparsity_moves.store import Store
from sparsity_moves.studies.engine.planning import Shard
from sparsity_moves.studies.engine.worker import cores, prepare, train_and_store

_heard: Any = None


def _begin(heard: Any, parent: int) -> None:
    """Start of a worker, and its end when the parent ends, however it does."""
    global _heard
    _heard = heard
    prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    end_with(parent)


def _work(
    number: int, shard: Shard, store: Store, checkpoints: Collection[str] | None, keep_every: float
) -> int:
    """Train, measure and store one shard."""
    train_and_store(shard, store, checkpoints, keep_every, lambda part: _heard.put((number, part)))
    return number


class LocalEngine:
    """Processes of this machine. See `Engine` for what the methods promise."""

    device = "cpu"

    def __init__(
        self, store: Store, checkpoints: Collection[str] | None, workers: int | None, keep_every: float
    ) -> None:
        self.store, self.checkpoints, self.keep_every = store, checkpoints, keep_every
        self.slots = workers or cores()
        context = get_context("spawn")
        self.heard = context.Queue()
        self.pool = ProcessPoolExecutor(self.slots, context, _begin, (self.heard, os.getpid()))
        self.pending: set[Future[int]] = set()

    def submit(self, number: int, shard: Shard) -> None:
        try:
            work = (number, shard, self.store, self.checkpoints, self.keep_every)
            self.pending.add(self.pool.submit(_work, *work))
        except BrokenProcessPool:
            raise self._ended() from None

    def poll(self, seconds: float) -> tuple[dict[int, float], list[int], list[str]]:
        done, self.pending = wait(self.pending, timeout=seconds, return_when=FIRST_COMPLETED)
        try:
            finished = [future.result() for future in done]
        except BrokenProcessPool:
            raise self._ended() from None
        parts, said = {}, []
        try:
            while True:
                number, part = self.heard.get_nowait()
                if isinstance(part, str):
                    said.append(part)
                else:
                    parts[number] = part
        except Empty:
            return parts, finished, said

    def close(self) -> None:
        """Let no worker go on with what nobody waits for."""
        if self.pending:
            for process in list((self.pool._processes or {}).values()):
                process.terminate()
        self.pool.shutdown(cancel_futures=True)

    @staticmethod
    def _ended() -> UserError:
        return UserError("a training process was ended from outside (out of memory?)")
