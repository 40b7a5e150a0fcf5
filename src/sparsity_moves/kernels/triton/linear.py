"""A linear map at every token, the gradient of its matrix, and how products round."""

from __future__ import annotations

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor


def precision() -> str:
    """How Triton's products round: as the vendor's do where they may use TF32, else to nearly all of fp32's bits."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def summed_product(x: Float[Tensor, "M N I"], d: Float[Tensor, "M N O"]) -> Float[Tensor, "M I O"]:
    """xᵀ d. A long sum with few outputs leaves most of a GPU idle, so it is cut into a few that are added up."""
    models, tokens = x.shape[:2]
    tiles = models * triton.cdiv(x.shape[2], 128) * triton.cdiv(d.shape[2], 128)
    wanted = min(8, 264 // tiles, tokens // 1024) if tiles <= 64 else 1
    parts = max((n for n in range(1, wanted + 1) if tokens % n == 0), default=1)
    if parts == 1:
        return x.transpose(1, 2) @ d
    cut = x.view(models * parts, tokens // parts, -1).transpose(1, 2) @ d.view(
        models * parts, tokens // parts, -1
    )
    return cut.view(models, parts, *cut.shape[1:]).sum(1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return x @ weight if bias is None else torch.baddbmm(bias[:, None], x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        upstream = gradients[0].contiguous()
        d_bias = upstream.sum(1) if ctx.biased else None
        return upstream @ weight.transpose(1, 2), summed_product(x, upstream), d_bias


def linear(
    x: Float[Tensor, "M N I"], weight: Float[Tensor, "M I O"], bias: Float[Tensor, "M O"] | None
) -> Float[Tensor, "M N O"]:
    """x @ weight + bias."""
    out: Tensor = _Linear.apply(x.contiguous(), weight, bias)
    return out
