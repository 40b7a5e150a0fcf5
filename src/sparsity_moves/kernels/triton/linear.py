"""A linear map at every token, the gradient of its matrix, and how products round.

Where products may round their factors to ten bits of mantissa and the matrix fits a program, one pass computes the
map and adds the bias and the stream: the vendor's product would read what it adds to, which something must have
written first. How fp16 takes TF32's place is told in `grouped`; here nothing is scaled: mixtures of values past
65,504 would be infinite, and there are none.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

BLOCK = 64
"""Tokens that a program takes at once."""
WIDEST = 128
"""Rows and columns of a matrix that a program holds."""
PROGRAMS = 264
"""Enough to keep a GPU busy: two for each multiprocessor of a Hopper."""


def precision() -> str:
    """How Triton's products round: as the vendor's do where they may use TF32, else to nearly all of fp32's bits."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def halved() -> bool:
    """Whether products may round their factors to ten bits, as fp16 has them too."""
    return precision() == "tf32"


def summed_product(x: Float[Tensor, "M N I"], d: Float[Tensor, "M N O"]) -> Float[Tensor, "M I O"]:
    """xᵀ d. A long sum with few outputs leaves most of a GPU idle, so it is cut into a few that are added up."""
    models, tokens = x.shape[:2]
    tiles = models * triton.cdiv(x.shape[2], 128) * triton.cdiv(d.shape[2], 128)
    wanted = min(8, PROGRAMS // tiles, tokens // 1024) if tiles <= 64 else 1
    parts = max((n for n in range(1, wanted + 1) if tokens % n == 0), default=1)
    if parts == 1:
        return x.transpose(1, 2) @ d
    cut = x.view(models * parts, tokens // parts, -1).transpose(1, 2) @ d.view(
        models * parts, tokens // parts, -1
    )
    return cut.view(models, parts, *cut.shape[1:]).sum(1)


@triton.jit
def _map(
    x, weight, bias, onto, y, N, IN: tl.constexpr, INP: tl.constexpr, OUT: tl.constexpr, OUTP: tl.constexpr,
    BIASED: tl.constexpr, ADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i, o = tl.arange(0, INP), tl.arange(0, OUTP)
    there = (n < N)[:, None]
    tile = tl.load(x + (m * N + n)[:, None] * IN + i[None, :], mask=there & (i < IN)[None, :], other=0.0)
    sides = (i < IN)[:, None] & (o < OUT)[None, :]
    into = tl.load(weight + (m * IN + i)[:, None] * OUT + o[None, :], mask=sides, other=0.0)
    out = tl.dot(tile.to(tl.float16), into.to(tl.float16))
    if BIASED:
        out += tl.load(bias + m * OUT + o, mask=o < OUT, other=0.0)[None, :]
    to = (m * N + n)[:, None] * OUT + o[None, :]
    inside = there & (o < OUT)[None, :]
    if ADDED:
        out += tl.load(onto + to, mask=inside, other=0.0)
    tl.store(y + to, out, mask=inside)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased, ctx.added = bias is not None, onto is not None
        models, tokens, inputs = x.shape
        outputs = weight.shape[2]
        if not halved() or max(inputs, outputs) > WIDEST:
            y = x @ weight if bias is None else torch.baddbmm(bias[:, None], x, weight)
            return y if onto is None else y.add_(onto)
        y = x.new_empty(models, tokens, outputs)
        # A pointer that the settings leave unread may be any.
        _map[(triton.cdiv(tokens, BLOCK), models)](
            x, weight.contiguous(), x if bias is None else bias.contiguous(),
            x if onto is None else onto.contiguous(), y, tokens, IN=inputs,
            INP=max(16, triton.next_power_of_2(inputs)), OUT=outputs, OUTP=max(16, triton.next_power_of_2(outputs)),
            BIASED=ctx.biased, ADDED=ctx.added, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        upstream = gradients[0].contiguous()
        d_bias = upstream.sum(1) if ctx.biased else None
        d_onto = upstream if ctx.added else None
        return upstream @ weight.transpose(1, 2), summed_product(x, upstream), d_bias, d_onto


def linear(
    x: Float[Tensor, "M N I"],
    weight: Float[Tensor, "M I O"],
    bias: Float[Tensor, "M O"] | None,
    onto: Float[Tensor, "M N O"] | None = None,
) -> Float[Tensor, "M N O"]:
    """x @ weight + bias, and `onto` too."""
    out: Tensor = _Linear.apply(x.contiguous(), weight, bias, onto)
    return out
