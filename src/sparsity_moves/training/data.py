"""The batches of a fleet: each model's own, by its seed alone, whatever stands next to it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from sparsity_moves.tasks import Sequences, generator
from sparsity_moves.training.spec import Spec

BLOCK = 256
"""Steps whose batches are drawn at once. Part of the protocol: it decides the order of the draws."""


def evaluation(specs: list[Spec], device: torch.device) -> list[Sequences]:
    """What each model is measured on."""
    return [to(spec.task_object.evaluation(spec.seed, spec.evaluation), device) for spec in specs]


def to(sequences: Sequences, device: torch.device) -> Sequences:
    held_out = sequences.held_out
    return Sequences(
        sequences.tokens.to(device),
        sequences.targets.to(device),
        sequences.operations.to(device),
        None if held_out is None else held_out.to(device),
    )


def batches(
    specs: list[Spec], device: torch.device
) -> Iterator[tuple[Int[Tensor, "M B T"], Int[Tensor, "M B R"]]]:
    """Tokens and targets of every step, from step 1 on."""
    spec = specs[0]
    sources = [generator(s.seed, "batches") for s in specs]
    tokens = targets = index = torch.empty(0)  # set at step 0
    model = torch.arange(len(specs), device=device)[:, None]
    for step in range(spec.steps):
        if step == 0 or (spec.redraw_every and step % spec.redraw_every == 0):
            draw = step // spec.redraw_every if spec.redraw_every else 0
            pools = [s.task_object.training_pool(s.seed, draw, s.pool) for s in specs]
            tokens = torch.stack([pool.tokens for pool in pools]).to(device)
            targets = torch.stack([pool.targets for pool in pools]).to(device)
        if not spec.batch:
            yield tokens, targets
            continue
        if step % BLOCK == 0:
            shape = (BLOCK, spec.batch)
            index = torch.stack([torch.randint(tokens.shape[1], shape, generator=g) for g in sources], 1).to(
                device
            )
        drawn = index[step % BLOCK]
        yield tokens[model, drawn], targets[model, drawn]
