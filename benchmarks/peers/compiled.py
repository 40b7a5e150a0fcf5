"""(b) The plain loop with its forward and backward pass compiled; on a GPU as CUDA graphs too."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor

import plain_loop
from peers.plain import model_of
from peers.work import Work
from sparsity_moves.training import Spec


def forms(_spec: Spec, device: str) -> tuple[str, ...]:
    # Where launches take the time, graphs save more than tuned products, and tuning takes minutes a problem.
    return ("default",) if device == "cpu" else ("reduce-overhead",)


def build(work: Work, device: str, form: str) -> Callable[[], Tensor]:
    torch.backends.cuda.matmul.allow_tf32 = work.spec.precision == "tf32"
    torch._dynamo.config.recompile_limit = 64  # each problem is a shape of its own
    model = model_of(work, device, masked=True)
    loss = torch.compile(plain_loop.losses(model, work.spec), mode=form, dynamic=False)
    step = plain_loop.updates(model, work.spec, loss, fused=True)
    batches = [(tokens[0].clone(), targets[0].clone()) for tokens, targets in work.on(device)]

    def a_round() -> Tensor:
        losses = []
        for batch in batches:
            torch.compiler.cudagraph_mark_step_begin()
            losses.append(step(*batch)[0].clone())  # the next step overwrites it
        return torch.stack(losses)[:, None].cpu()

    return a_round
