"""Cross-entropy over few classes: one pass forward, one back."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


@triton.jit
def _entropy(logits, targets, out, N, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    inside = (n < N)[:, None] & (c < C)[None, :]
    x = tl.load(logits + n[:, None] * C + c[None, :], mask=inside, other=-float("inf"))
    x = tl.where((n < N)[:, None], x, 0.0)
    target = tl.load(targets + n, mask=n < N, other=0)
    highest = tl.max(x, axis=1)
    total = tl.log(tl.sum(tl.exp(x - highest[:, None]), axis=1)) + highest
    right = tl.sum(tl.where(c[None, :] == target[:, None], x, 0.0), axis=1)
    tl.store(out + n, total - right, mask=n < N)


@triton.jit
def _entropy_backward(
    logits, targets, upstream, gradient, N, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    inside = (n < N)[:, None] & (c < C)[None, :]
    x = tl.load(logits + n[:, None] * C + c[None, :], mask=inside, other=-float("inf"))
    x = tl.where((n < N)[:, None], x, 0.0)
    target = tl.load(targets + n, mask=n < N, other=0)
    exponentials = tl.exp(x - tl.max(x, axis=1)[:, None])
    p = exponentials / tl.sum(exponentials, axis=1)[:, None]
    p = tl.where(c[None, :] == target[:, None], p - 1, p)
    p = p * tl.load(upstream + n, mask=n < N, other=0.0)[:, None]
    tl.store(gradient + n[:, None] * C + c[None, :], p, mask=inside)


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets = logits.contiguous(), targets.contiguous()
        out = logits.new_empty(targets.shape)
        classes = logits.shape[-1]
        ctx.settings = {"C": classes, "CP": triton.next_power_of_2(classes), "BLOCK": 32}
        ctx.save_for_backward(logits, targets)
        _entropy[(triton.cdiv(targets.numel(), 32),)](logits, targets, out, targets.numel(), **ctx.settings)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        _entropy_backward[(triton.cdiv(targets.numel(), 32),)](
            logits, targets, gradients[0].contiguous(), gradient, targets.numel(), **ctx.settings
        )
        return gradient, None


def cross_entropy(
    logits: Float[Tensor, "M B R C"], targets: Int[Tensor, "M B R"]
) -> Float[Tensor, "M B R"]:
    """-log softmax(logits)[target] of every answer."""
    out: Tensor = _Entropy.apply(logits, targets)
    return out
