"""Train what the store misses: shards of a fleet each, over the processors there are.

`planning` says what is to be trained, in which shards; `worker` trains one; `local`, `on_gpus` and `on_ray` are the
places where workers run; `progress` shows how far they are. This file hands shards to an engine, whichever it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from typing import Protocol

from sparsity_moves.errors import UserError
from sparsity_moves.names import MOMENTS, EngineName
from sparsity_moves.store import Store
from sparsity_moves.store.claims import Claims
from sparsity_moves.studies.engine.planning import STACK, Shard, missing, shards, trained_meanwhile
from sparsity_moves.studies.engine.progress import shown
from sparsity_moves.studies.engine.worker import KEEP_EVERY, cores, device_name, keep_memory
from sparsity_moves.training import Spec


class Engine(Protocol):
    """Where shards are trained."""

    device: str
    """cpu | cuda: what the shards' size goes by."""

    @property
    def slots(self) -> int:
        """Shards that can be in training at once."""

    def submit(self, number: int, shard: Shard) -> None:
        """Begin to train a shard."""

    def poll(self, seconds: float) -> tuple[dict[int, float], list[int], list[str]]:
        """Wait at most so long for a shard.

        Gives what share of the others is done, which are stored now, and what is to be said.
        Raises `UserError` where a worker ends before its work does.
        """

    def close(self) -> None:
        """End every worker."""


def start(
    name: EngineName,
    store: Store,
    checkpoints: Collection[str] | None,
    workers: int | None,
    address: str | None,
    keep_every: float = KEEP_EVERY,
) -> Engine:
    """An engine by its name. Raises `UserError` where it cannot be had."""
    if name == "ray":
        from sparsity_moves.studies.engine.on_ray import RayEngine

        return RayEngine(store, checkpoints, workers, address)
    if address is not None:
        raise UserError("an address is a Ray cluster's: it needs --engine ray")
    from sparsity_moves.studies.engine.on_gpus import GpuEngine, visible_gpus

    if gpus := visible_gpus():
        return GpuEngine(store, checkpoints, workers, keep_every, gpus)
    from sparsity_moves.studies.engine.local import LocalEngine

    return LocalEngine(store, checkpoints, workers, keep_every)


def run(
    specs: Sequence[Spec],
    store: Store,
    *,
    engine: EngineName = "local",
    address: str | None = None,
    workers: int | None = None,
    stack: int | None = None,
    checkpoints: Collection[str] | None = None,
    moment: str | None = None,
    measured: bool = False,
    keep_every: float = KEEP_EVERY,
    minutes: float | None = None,
    quiet: bool = False,
) -> int:
    """Train what is missing among `specs`; gives how many runs were trained.

    Args:
        specs: the runs that are wanted.
        store: where they are looked for and put.
        engine: processes of this machine, or workers of a Ray cluster.
        address: the cluster's; one is started on this machine unless given.
        workers: shards in training at once; as many as there are cores, or a few a GPU, unless given.
        stack: models a fleet, at most; `STACK` unless given.
        checkpoints: moments whose parameters are kept; those that `keeping` says unless given.
        moment: one whose parameters are wanted, and then all are kept: a run that is stored without them is
            trained again.
        measured: whether a run that lacks measures, and parameters to measure it from, is trained again.
        keep_every: seconds between two states of a shard, from which it goes on if it is interrupted.
        minutes: the time there is. When it is up, shards in training are left at their last state, from which
            the next call goes on (on Ray, which keeps none, they begin again).
        quiet: no progress.

    Shows progress with the time left, unless quiet. Runs that another process is training are waited for, and
    trained here if it ends without them. Raises `UserError` where a worker dies or the disk refuses; whatever
    finished before is kept, and the next call goes on from there.
    """
    if workers is not None and workers < 1:
        raise UserError(f"training needs at least one worker, not {workers}")
    if checkpoints is None and moment is not None:
        checkpoints = MOMENTS
    store.sweep()
    todo, said = missing(specs, store, moment, measured)
    for sentence in said:
        print(sentence, file=sys.stderr)
    if not todo:
        return 0
    claims = Claims(store.root)
    try:
        place = start(engine, store, checkpoints, workers, address, keep_every)
        try:
            queue = shards(todo, stack or STACK[place.device], place.device)
            end = None if minutes is None else time.monotonic() + 60 * minutes
            return _run(queue, store, place, claims, moment, measured, end, quiet)
        finally:
            place.close()
    finally:
        claims.close()


def _run(
    queue: list[Shard],
    store: Store,
    engine: Engine,
    claims: Claims,
    moment: str | None,
    measured: bool,
    end: float | None,
    quiet: bool,
) -> int:
    """Hand out shards until all are stored, or the clock has passed `end`; gives how many models were trained."""
    costs = [shard.cost for shard in queue]
    share = [0.0] * len(queue)
    waiting, flying = dict(enumerate(queue)), dict[int, Shard]()
    models, trained = sum(len(shard.specs) for shard in queue), 0
    with shown(quiet) as show:
        while waiting or flying:
            if end is not None and time.monotonic() > end:
                break
            for number, shard in list(waiting.items()):
                if len(flying) >= engine.slots:
                    break
                if not claims.take(shard.spec_ids):
                    continue
                left = tuple(s for s in shard.specs if not trained_meanwhile(s, store, moment, measured))
                del waiting[number]
                if left:
                    flying[number] = Shard(left)
                    engine.submit(number, flying[number])
                else:
                    share[number] = 1.0
                    claims.free(shard.spec_ids)
            if flying:
                try:
                    parts, finished, said = engine.poll(0.5)
                except UserError as error:
                    raise UserError(
                        f"{error}; {trained} finished runs are kept, and the same command goes on from there"
                    ) from None
                for sentence in () if quiet else said:
                    print(sentence, file=sys.stderr)
                for number, part in parts.items():
                    share[number] = max(share[number], part)
                for number in finished:
                    share[number] = 1.0
                    trained += len(flying.pop(number).specs)
                    claims.free(queue[number].spec_ids)
            elif waiting:
                time.sleep(0.5)
            others = f", {len(waiting)} shards wait for another process" if waiting and not flying else ""
            done = sum(s * c for s, c in zip(share, costs, strict=True)) / sum(costs)
            show(done, f"{trained} of {models} models{others}")
    return trained


__all__ = [
    "STACK",
    "Engine",
    "EngineName",
    "Shard",
    "cores",
    "device_name",
    "keep_memory",
    "missing",
    "run",
    "shards",
]
