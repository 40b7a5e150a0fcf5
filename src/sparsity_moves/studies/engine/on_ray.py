"""The Ray engine: shards on the machines of a Ray cluster, one GPU each where there are any, else one core.

A worker needs no disk: it gives a shard's runs back as files, and the process that asked stores them. So one way
serves one machine and many, and the store has one writer. Ray starts a lost worker's shard again, from its start:
without a disk it leaves no state.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import Any

from sparsity_moves.errors import UserError
from sparsity_moves.store import Store
from sparsity_moves.store.run_files import RunFiles
from sparsity_moves.studies.engine.planning import Shard
from sparsity_moves.studies.engine.worker import cores, prepare, train_shard

RETRIES = 5
"""How often a shard is started again whose worker was lost, before the training stops."""


class Heard:
    """What the workers last said of their shards: lives in the cluster."""

    def __init__(self) -> None:
        self.parts: dict[int, float] = {}

    def hear(self, number: int, part: float) -> None:
        self.parts[number] = part

    def all(self) -> dict[int, float]:
        return self.parts


def work(
    number: int, shard: Shard, checkpoints: Collection[str] | None, heard: Any
) -> tuple[int, dict[str, RunFiles]]:
    """Train and measure one shard, and give its runs' files."""
    prepare()
    return number, dict(
        train_shard(shard, checkpoints, lambda part: heard.hear.remote(number, part), every=1.0)
    )


class RayEngine:
    """Workers of a cluster; of one that is started on this machine where no address is given."""

    def __init__(
        self, store: Store, checkpoints: Collection[str] | None, workers: int | None, address: str | None
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise UserError(
                "the Ray engine needs Ray: install it with `pip install 'sparsity-moves[ray]'`"
            ) from None
        self.ray, self.store, self.checkpoints, self.workers = ray, store, checkpoints, workers
        self.started = not ray.is_initialized()
        if self.started:
            here: dict[str, Any] = {"num_cpus": workers or cores(), "include_dashboard": False}
            try:
                ray.init(
                    address=address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **({} if address else here),
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                where = f"at {address}" if address else "on this machine"
                raise UserError(f"no Ray cluster answers {where}: {str(error).splitlines()[0]}") from error
        self.unit = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        self.device = "cuda" if self.unit == "GPU" else "cpu"
        needs = {"num_gpus": 1, "num_cpus": 1} if self.unit == "GPU" else {"num_cpus": 1}
        self.work = ray.remote(**needs, max_retries=RETRIES)(work)
        self.heard = ray.remote(num_cpus=0, max_restarts=-1)(Heard).remote()
        self.pending: list[Any] = []

    @property
    def slots(self) -> int:
        """Machines may come and go."""
        there = max(1, int(self.ray.cluster_resources().get(self.unit, 0)))
        return min(self.workers or there, there)

    def submit(self, number: int, shard: Shard) -> None:
        self.pending.append(self.work.remote(number, shard, self.checkpoints, self.heard))

    def poll(self, seconds: float) -> tuple[dict[int, float], list[int], list[str]]:
        done, self.pending = self.ray.wait(self.pending, timeout=seconds)
        finished = []
        for reference in done:
            number, runs = self._result(reference)
            for spec_id, files in runs.items():
                self.store.put(spec_id, files)
            finished.append(number)
        try:
            parts: dict[int, float] = self.ray.get(self.heard.all.remote(), timeout=seconds)
        except self.ray.exceptions.RayError:  # it is being started again elsewhere
            parts = {}
        return parts, finished, []

    def _result(self, reference: Any) -> tuple[int, dict[str, RunFiles]]:
        try:
            number, runs = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            raise UserError(
                f"a shard's worker was lost {RETRIES + 1} times (out of memory?): {type(error).__name__}"
            ) from None
        return number, runs

    def close(self) -> None:
        """Let no worker go on with what nobody waits for; the cluster stays if it was there before."""
        for reference in self.pending:
            self.ray.cancel(reference, force=True)
        self.ray.kill(self.heard)
        if self.started:
            self.ray.shutdown()
