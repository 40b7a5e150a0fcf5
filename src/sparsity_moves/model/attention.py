"""Multi-head attention: softmax(q · k / √K) v, twice.

`attend` is the formula. `attend_by_table` gives the same where queries, keys and values are rows of small
tables, as in the first layer, whose residual stream depends on (position, token) alone. It multiplies the tables
out once and looks scores up, and its softmax runs along the outermost axis, where it vectorises: a softmax over
rows of eight costs more than all of an attention's products.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Heads = Float[Tensor, "M B P H K"]
Pattern = Float[Tensor, "M B H P T"]


def rows(table: Float[Tensor, "M S ..."], index: Int[Tensor, "M B P"]) -> Float[Tensor, "M B P ..."]:
    """Row `index[m, ...]` of model m's table; its gradient is summed in a fixed order."""
    models, size = table.shape[:2]
    shift = torch.arange(0, models * size, size, device=index.device).view(-1, 1, 1)
    flat = table.reshape(models * size, -1)
    return F.embedding(index + shift, flat).view(*index.shape, *table.shape[2:])


def later(positions: tuple[int, ...], length: int, device: torch.device) -> Bool[Tensor, "P T"]:
    """What a causal position must not see."""
    return torch.arange(length, device=device) > torch.tensor(positions, device=device)[:, None]


def attention_pattern(
    query: Heads, key: Float[Tensor, "M B T H K"], hidden: Bool[Tensor, "P T"] | None
) -> Pattern:
    """softmax(q · k / √K), with what is hidden left out."""
    scores = query.transpose(2, 3) @ key.permute(0, 1, 3, 4, 2) / math.sqrt(query.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1)


def mix(pattern: Pattern, value: Float[Tensor, "M B T H K"]) -> Heads:
    """Each head's values, weighted by its pattern."""
    return (pattern @ value.transpose(2, 3)).transpose(2, 3)


def in_order(x: Float[Tensor, "T ..."]) -> Float[Tensor, ...]:
    """The sum along the first axis, first to last whatever the shape of the rest."""
    total = x[0].clone()
    for row in x[1:]:
        total += row
    return total


class _Table(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, asking: Tensor, seen: Tensor, hidden: Any
    ) -> Any:
        models, size, heads, width = key.shape
        scale = 1 / math.sqrt(width)
        table = (query * scale).transpose(1, 2) @ key.permute(0, 2, 3, 1)  # (M, H, Q, S)
        unit = torch.arange(models * heads, device=key.device).view(models, heads, 1, 1) * query.shape[1]
        place = (unit + asking[:, None]) * size + seen.permute(2, 0, 1)[
            :, :, None, :, None
        ]  # (T, M, H, B, P)
        scores = table.flatten().index_select(0, place.flatten()).view(place.shape)
        if hidden is not None:
            scores.masked_fill_(hidden.T[:, None, None, None], -torch.inf)
        # Not softmax(0): where its vector loops end depends on how many models there are, and so does its rounding.
        pattern = scores.sub_(scores.amax(0)).exp_()
        pattern.div_(in_order(pattern))
        values = rows(value, seen).transpose(2, 3)  # (M, B, H, T, K)
        mixed = pattern.permute(1, 3, 2, 4, 0).contiguous() @ values
        ctx.save_for_backward(query, key, values, seen, place, pattern)
        ctx.scale = scale
        ctx.mark_non_differentiable(pattern)
        return mixed.transpose(2, 3), pattern.permute(1, 3, 2, 4, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, values, seen, place, pattern = ctx.saved_tensors
        models, size, heads, width = key.shape
        upstream = gradients[0].transpose(2, 3)  # (M, B, H, P, K)
        d_pattern = (upstream @ values.transpose(-1, -2)).permute(4, 0, 2, 1, 3).contiguous()
        d_pattern.mul_(pattern)
        d_scores = d_pattern.sub_(pattern * in_order(d_pattern))
        d_table = key.new_zeros(models * heads * query.shape[1] * size)
        d_table.scatter_add_(0, place.flatten(), d_scores.flatten())
        d_table = d_table.view(models, heads, query.shape[1], size) * ctx.scale
        d_query = (d_table @ key.transpose(1, 2)).transpose(1, 2)
        d_key = (d_table.transpose(2, 3) @ query.transpose(1, 2)).transpose(1, 2)
        d_values = pattern.permute(1, 3, 2, 0, 4).contiguous() @ upstream  # (M, B, H, T, K)
        flat = (seen + torch.arange(0, models * size, size, device=key.device).view(-1, 1, 1)).flatten()
        d_value = key.new_zeros(models * size, heads * width)
        d_value.index_add_(0, flat, d_values.transpose(2, 3).reshape(len(flat), -1))
        return d_query, d_key, d_value.view_as(key), None, None, None


def attend_by_table(
    query: Float[Tensor, "M Q H K"],
    key: Float[Tensor, "M S H K"],
    value: Float[Tensor, "M S H K"],
    asking: Int[Tensor, "M B P"],
    seen: Int[Tensor, "M B T"],
    hidden: Bool[Tensor, "P T"] | None,
) -> tuple[Heads, Pattern]:
    """Mixtures and patterns where position b, p asks with row `asking[b, p]` of the query table and sees rows
    `seen[b]` of the key and value tables. The pattern carries no gradient of its own."""
    mixed, pattern = _Table.apply(query, key, value, asking, seen, hidden)  # type: ignore[no-untyped-call]
    return mixed, pattern
