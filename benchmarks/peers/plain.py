"""(a) One model after another, in ordinary PyTorch: `plain_loop`. Only the first model is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import plain_loop
from peers.work import Work
from sparsity_moves.training import Spec


def forms(spec: Spec, _device: str) -> tuple[str, ...]:
    return ("each expert its own tokens", "each expert all tokens") if spec.experts > 1 else ("eager",)


def model_of(work: Work, device: str, masked: bool) -> plain_loop.Transformer:
    model = plain_loop.Transformer(work.spec, masked)
    plain_loop.load(model, {name: value[0] for name, value in work.start.items()})
    return model.to(device)


def build(work: Work, device: str, form: str) -> Callable[[], Tensor]:
    torch.backends.cuda.matmul.allow_tf32 = work.spec.precision == "tf32"
    model = model_of(work, device, masked=form == "each expert all tokens")
    step = plain_loop.updates(model, work.spec, plain_loop.losses(model, work.spec), fused=True)
    batches = [(tokens[0], targets[0]) for tokens, targets in work.on(device)]

    def a_round() -> Tensor:
        return torch.stack([step(*batch)[0] for batch in batches])[:, None].cpu()

    return a_round
