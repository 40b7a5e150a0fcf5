"""An MoE by dispatch: tokens sorted by expert, and PyTorch's grouped product, forward and backward.

The public way to compute a large MoE on one device, and what trees are measured against. Sizes of groups stay on the
device. On a GPU it wants bf16; the model's width in bytes is a multiple of 16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.model import FeedForward, Parameters, Routing
from sparsity_moves.model.feedforward import ACTIVATIONS


class _Pick(torch.autograd.Function):
    """Rows in another order, each k times; going back, each row's k copies are added up in their order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x[order // k]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (inverse,) = ctx.saved_tensors
        back = gradients[0][inverse]
        return (back if ctx.k == 1 else back.unflatten(0, (-1, ctx.k)).sum(1)), None, None, None


def padded(weight: Tensor, *by: int) -> Tensor:
    """With zeros, as `F.pad` takes their numbers; not a copy where there are none."""
    return F.pad(weight, by) if any(by) else weight


def dispatched_experts(
    ffn: FeedForward,
    p: Parameters,
    name: str,
    x: Float[Tensor, "M N D"],
    routing: Routing,
    added: bool = False,
) -> Float[Tensor, "M N D"]:
    """The FFN's output from the open experts alone, and x too where it is `added`; equal to the masked form up to
    rounding.

    `routing` is of the N tokens, (M, B, R, E) with N = B·R.
    """
    if added:
        return x + dispatched_experts(ffn, p, name, x, routing)
    models, tokens, d_model = x.shape
    k, groups, shape = ffn.top_k, models * ffn.experts, (models, -1, ffn.experts, ffn.expert_width)
    gates, chosen = routing.gates.flatten(1, 2), routing.chosen.flatten(1, 2)
    expert = chosen.topk(k, dim=-1).indices  # (M, N, k)
    group = (expert + torch.arange(models, device=x.device)[:, None, None] * ffn.experts).flatten()
    own, order = group.sort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    ends = chosen.sum(1, dtype=torch.long).flatten().cumsum(0).int()  # bf16 counts to 256

    more = -ffn.expert_width % (16 // x.element_size())  # units that are zero, and make rows 16 bytes long

    def columns(part: str) -> Tensor:  # (M, D, E·w) as (M·E, D, w)
        return padded(p[name + part].view(shape).transpose(1, 2).reshape(groups, d_model, -1), 0, more)

    rows = _Pick.apply(x.flatten(0, 1), order, inverse, k)  # type: ignore[no-untyped-call]
    hidden = F.grouped_mm(rows, columns("w_in"), offs=ends)
    if ffn.bias:
        hidden = hidden + padded(p[name + "b_in"].view(groups, -1), 0, more)[own]
    hidden = ACTIVATIONS[ffn.activation](hidden)
    if ffn.gated:
        hidden = hidden * F.grouped_mm(rows, columns("w_up"), offs=ends)
    rows_out = padded(p[name + "w_out"].reshape(groups, -1, d_model), 0, 0, 0, more)
    out: Tensor = F.grouped_mm(hidden, rows_out, offs=ends)
    if ffn.bias:
        out = out + p[name + "b_out"].flatten(0, 1)[own]
    out = _Pick.apply(out, inverse, order, 1)  # type: ignore[no-untyped-call]
    out = out.view(models, tokens, k, d_model)
    if ffn.plain_gates:
        return out[:, :, 0]
    weighted: Tensor = (out * gates.gather(-1, expert)[..., None]).sum(2)
    return weighted
