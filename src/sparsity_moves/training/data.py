"""The batches of a fleet: each model's own, by its seed alone, whatever stands next to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from sparsity_moves.tasks import Sequences, generator, stacked
from sparsity_moves.training.spec import Spec

T = TypeVar("T")

BLOCK = 256
"""Steps whose batches are drawn at once. Part of the protocol: it decides the order of the draws."""


def evaluation(specs: list[Spec], device: torch.device) -> Sequences:
    """What each model is measured on, stacked: every tensor with a leading axis M."""
    return stacked([spec.task_object.evaluation(spec.seed, spec.evaluation) for spec in specs]).to(device)


def probe(specs: list[Spec], step: int, size: int) -> Int[Tensor, "M probe"]:
    """The inputs that the checkpoint of this step is judged on, anew at every look (add-7 in the paper)."""
    return torch.stack(
        [torch.randint(size, (s.probe,), generator=generator(s.seed, "probe", step)) for s in specs]
    )


def pools(specs: list[Spec]) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (M, S, T) and targets (M, S, R) that batches are drawn from, one pair a redraw."""
    spec = specs[0]
    for draw in range(-(-spec.steps // spec.redraw_every) if spec.redraw_every else 1):
        drawn = [s.task_object.training_pool(s.seed, draw, s.pool) for s in specs]
        yield torch.stack([pool.tokens for pool in drawn]), torch.stack([pool.targets for pool in drawn])


def draws(specs: list[Spec], size: int) -> Iterator[Int[Tensor, "block M B"]]:
    """Which of the pool's `size` sequences each step takes, a block of steps at a time."""
    sources = [generator(s.seed, "batches") for s in specs]
    shape = (BLOCK, specs[0].batch)
    for _ in range(-(-specs[0].steps // BLOCK)):
        yield torch.stack([torch.randint(size, shape, generator=source) for source in sources], 1)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the last one is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def batches(
    specs: list[Spec], device: torch.device, after: int = 0
) -> Iterator[tuple[Int[Tensor, "M B T"], Int[Tensor, "M B R"]]]:
    """Tokens and targets of every step, from the one `after` so many; the same tensors where nothing changes.

    For a GPU the host draws what comes next meanwhile.
    """
    spec = specs[0]
    wait: Callable[[Iterator[Any]], Iterator[Any]] = ahead if device.type == "cuda" else iter
    pool, drawn = wait(pools(specs)), None
    tokens = targets = index = torch.empty(0)  # set at step 0
    model = torch.arange(len(specs), device=device)[:, None]
    for step in range(spec.steps):
        if step == 0 or (spec.redraw_every and step % spec.redraw_every == 0):
            tokens, targets = (t.to(device) for t in next(pool))
        if spec.batch:
            drawn = drawn or wait(draws(specs, tokens.shape[1]))
            if step % BLOCK == 0:
                index = next(drawn).to(device)
        if step < after:
            continue
        if not spec.batch:
            yield tokens, targets
            continue
        picked = index[step % BLOCK]
        yield tokens[model, picked], targets[model, picked]
