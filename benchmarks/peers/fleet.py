"""(e) This project: fleets of models, as its engine would train them. On a GPU one fleet; on a CPU a process a core,
with one thread and fleets of eight."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from peers.work import Work
from sparsity_moves.studies.engine import STACK, cores
from sparsity_moves.studies.engine.worker import prepare
from sparsity_moves.training import Fleet, Spec


def forms(_spec: Spec, _device: str) -> tuple[str, ...]:
    return ("fleet",)


def build(work: Work, device: str, _form: str) -> Callable[[], Tensor]:
    if device == "cuda":
        return fleet(work, device)
    shares = min(cores(), len(work.specs))
    size = -(-len(work.specs) // shares)
    first, *others = (work.part(start, start + size) for start in range(0, len(work.specs), size))
    context, elsewhere = get_context("spawn"), []
    for share in others:
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, share), daemon=True).start()
        elsewhere.append(ours)
    own = stacks(first)

    def a_round() -> Tensor:
        for connection in elsewhere:
            connection.send(True)
        return torch.cat([own(), *(torch.tensor(connection.recv()) for connection in elsewhere)], 1)

    return a_round


def serve(connection: Connection, work: Work) -> None:
    """A round of these models whenever it is asked for, until nobody is there to ask."""
    a_round = stacks(work)
    try:
        while connection.recv():
            connection.send(a_round().tolist())
    except EOFError:
        return


def stacks(work: Work) -> Callable[[], Tensor]:
    """Fleets no larger than the engine's, one after another, in this process."""
    prepare()
    size = STACK["cpu"]
    rounds = [fleet(work.part(start, start + size), "cpu") for start in range(0, len(work.specs), size)]
    return lambda: torch.cat([a_round() for a_round in rounds], 1)


def fleet(work: Work, device: str) -> Callable[[], Tensor]:
    """One fleet's rounds."""
    models, batches = Fleet(work.specs, device), work.on(device)

    def a_round() -> Tensor:
        return torch.stack([models.step(*batch).clone() for batch in batches]).cpu()

    return a_round
