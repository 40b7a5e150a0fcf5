"""Multi-head attention: softmax(q · k / √K) v, twice.

`attention_pattern` and `mix` are the formula. `attend_by_table` gives the same where queries, keys and values
are rows of small tables, as in the first layer, whose residual stream depends on (position, token) alone. It
multiplies the tables out once and looks scores up, and its softmax runs along the outermost axis, where it
vectorises: a softmax over rows of eight costs more than all of an attention's products.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsity_moves.model.feedforward import alike

Heads = Float[Tensor, "M B P H K"]
Pattern = Float[Tensor, "M B H P T"]


def rows(table: Float[Tensor, "M S ..."], index: Int[Tensor, "M B P"]) -> Float[Tensor, "M B P ..."]:
    """Row `index[m, ...]` of model m's table; its gradient is summed in a fixed order."""
    models, size = table.shape[:2]
    shift = torch.arange(models, device=index.device).mul(size).view(-1, 1, 1)
    flat = table.reshape(models * size, math.prod(table.shape[2:]))
    place = index + shift
    if place.is_cuda:  # where an index_select's gradient is summed in any order; an embedding's is not
        return F.embedding(place, flat).view(*index.shape, *table.shape[2:])
    return flat.index_select(0, place.flatten()).view(*index.shape, *table.shape[2:])


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
    """Heads come first: a product is then one call a head over all models and sequences, on the layouts that the
    look-ups leave, and each (model, sequence) is a matrix of its own."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, heads: int, asking: Tensor, seen: Tensor, causal: bool
    ) -> tuple[Tensor, Tensor]:
        models, size, _ = projected.shape
        sequences, wanted = asking.shape[1:]
        split = projected.unflatten(-1, (3, heads, -1)).permute(2, 3, 0, 1, 4).contiguous()
        query, key, value = split.flatten(1, 2)  # each (H·M, S, K)
        ctx.scale = 1 / math.sqrt(query.shape[-1])
        query *= ctx.scale
        mask = projected.new_zeros(size, size)
        if causal:
            position = torch.arange(size, device=mask.device) // (size // seen.shape[2])
            mask.masked_fill_(position > position[:, None], -torch.inf)
        table = torch.baddbmm(mask, query, key.transpose(1, 2))  # (H·M, S, S)
        first = torch.arange(0, models * size, size, device=seen.device).view(-1, 1, 1)
        by_position = seen.flatten(0, 1).T.contiguous()[..., None]  # (T, M·B, 1)
        place = (asking + first).flatten(0, 1) * size + by_position  # (T, M·B, P)
        place = place.reshape(1, -1).expand(heads, -1)
        scores = table.view(heads, -1).gather(1, place).view(heads, -1, models, sequences * wanted)
        pattern = alike(lambda x: x.softmax(1), scores, 2).view(heads, -1, models * sequences, wanted)
        row = (seen + first).flatten()
        of_head = torch.arange(0, len(value) * size, models * size, device=row.device)[:, None]
        values = value.flatten(0, 1).index_select(0, (row + of_head).flatten())
        values = values.view(heads, models * sequences, -1, value.shape[-1])
        mixed = values.new_empty(heads, models * sequences, wanted, values.shape[-1])
        for h in range(heads):
            torch.bmm(pattern[h].permute(1, 2, 0), values[h], out=mixed[h])
        pattern_seen = pattern.unflatten(2, (models, sequences)).permute(2, 3, 0, 4, 1)
        ctx.save_for_backward(query, key, values, place, row, pattern)
        ctx.mark_non_differentiable(pattern_seen)
        return mixed.unflatten(1, (models, sequences)).permute(1, 2, 3, 0, 4), pattern_seen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, values, place, row, pattern = ctx.saved_tensors
        heads, _, _, width = values.shape
        models, size = len(query) // heads, query.shape[1]
        upstream = gradients[0].permute(3, 0, 1, 2, 4).reshape(heads, *pattern.shape[2:], width)
        d_pattern = upstream.flatten(0, 1) @ values.flatten(0, 1).transpose(1, 2)
        d_pattern = d_pattern.unflatten(0, (heads, -1)).permute(3, 0, 1, 2).contiguous()  # (T, H, M·B, P)
        d_pattern *= pattern.transpose(0, 1)
        d_scores = d_pattern.sub_(pattern.transpose(0, 1) * in_order(d_pattern)).transpose(0, 1)
        d_table = values.new_zeros(heads, models * size * size)
        d_table = d_table.scatter_add_(1, place, d_scores.reshape(heads, -1)).view(-1, size, size)
        d_values = torch.empty_like(values)
        for h in range(heads):
            torch.bmm(pattern[h].transpose(0, 1), upstream[h], out=d_values[h])
        d_value = values.new_zeros(models * size, heads * width)
        d_value.index_add_(0, row, d_values.permute(1, 2, 0, 3).reshape(len(row), -1))
        d_projected = values.new_empty(models, size, 3, heads, width)
        for part, d in enumerate(((d_table @ key).mul_(ctx.scale), d_table.transpose(1, 2) @ query)):
            d_projected[:, :, part] = d.view(heads, models, size, width).permute(1, 2, 0, 3)
        d_projected[:, :, 2] = d_value.view(models, size, heads, width)
        return d_projected.flatten(2), None, None, None, None


def attend_by_table(
    projected: Float[Tensor, "M S QKV"],
    heads: int,
    asking: Int[Tensor, "M B P"],
    seen: Int[Tensor, "M B T"],
    causal: bool,
) -> tuple[Heads, Pattern]:
    """Mixtures and patterns where position b, p asks with row `asking[b, p]` of the query table and sees rows
    `seen[b]` of the key and value tables. The tables lie side by side in `projected`; their rows are in the order
    of the T positions, equally many a position. The pattern carries no gradient of its own."""
    mixed, pattern = _Table.apply(projected, heads, asking, seen, causal)  # type: ignore[no-untyped-call]
    return mixed, pattern
