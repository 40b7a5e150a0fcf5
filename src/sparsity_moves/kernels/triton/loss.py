"""Unembedding and cross-entropy over few classes: logits are written, read, and overwritten by their gradient.

The classes are padded to a multiple of eight, which the vendor's products want.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.kernels.triton.linear import summed_product


@triton.jit
def _entropy(
    logits, targets, out, N, STRIDE: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    inside = (n < N)[:, None] & (c < C)[None, :]
    x = tl.load(logits + n[:, None] * STRIDE + c[None, :], mask=inside, other=-float("inf"))
    x = tl.where((n < N)[:, None], x, 0.0)
    target = tl.load(targets + n, mask=n < N, other=0)
    highest = tl.max(x, axis=1)
    total = tl.log(tl.sum(tl.exp(x - highest[:, None]), axis=1)) + highest
    right = tl.sum(tl.where(c[None, :] == target[:, None], x, 0.0), axis=1)
    tl.store(out + n, total - right, mask=n < N)


@triton.jit
def _entropy_backward(
    logits, targets, upstream, N, STRIDE: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr
):
    """Writes the gradient over the logits, and zero over their padding."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    inside = (n < N)[:, None] & (c < C)[None, :]
    place = logits + n[:, None] * STRIDE + c[None, :]
    x = tl.load(place, mask=inside, other=-float("inf"))
    x = tl.where((n < N)[:, None], x, 0.0)
    target = tl.load(targets + n, mask=n < N, other=0)
    exponentials = tl.exp(x - tl.max(x, axis=1)[:, None])
    p = exponentials / tl.sum(exponentials, axis=1)[:, None]
    p = tl.where(c[None, :] == target[:, None], p - 1, p)
    p = p * tl.load(upstream + n, mask=n < N, other=0.0)[:, None]
    tl.store(place, p, mask=(n < N)[:, None] & (c < STRIDE)[None, :])


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unembed: Tensor, targets: Tensor) -> Tensor:
        classes = unembed.shape[-1]
        padded = F.pad(unembed, (0, -classes % 8))
        flat, targets = x.flatten(1, 2).contiguous(), targets.contiguous()
        logits = flat @ padded
        out = logits.new_empty(targets.shape)
        stride = padded.shape[-1]
        ctx.settings = {"STRIDE": stride, "C": classes, "CP": triton.next_power_of_2(stride), "BLOCK": 32}
        ctx.save_for_backward(flat, padded, targets, logits)
        ctx.shape = x.shape
        _entropy[(triton.cdiv(targets.numel(), 32),)](logits, targets, out, targets.numel(), **ctx.settings)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        flat, padded, targets, logits = ctx.saved_tensors
        _entropy_backward[(triton.cdiv(targets.numel(), 32),)](
            logits, targets, gradients[0].contiguous(), targets.numel(), **ctx.settings
        )
        d_x = (logits @ padded.transpose(1, 2)).view(ctx.shape)
        d_unembed = summed_product(flat, logits)[..., : ctx.settings["C"]]
        return d_x, d_unembed, None


def cross_entropy(
    x: Float[Tensor, "M B R D"], unembed: Float[Tensor, "M D C"], targets: Int[Tensor, "M B R"]
) -> Float[Tensor, "M B R"]:
    """-log softmax(x @ unembed)[target] of every answer. Its gradient can be taken once."""
    out: Tensor = _Entropy.apply(x, unembed, targets)
    return out
