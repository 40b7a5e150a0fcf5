"""Softmax, the k largest, the gates: one pass over the scores, and one back."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.model.architecture import FeedForward
from sparsity_moves.model.routing import Routing

PLAIN, SWITCH, RENORMALISED = 0, 1, 2


@triton.jit
def _route(
    scores,
    probabilities,
    chosen,
    gates,
    N,
    E: tl.constexpr,
    EP: tl.constexpr,
    TOP: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, EP)
    place = n[:, None] * E + e[None, :]
    inside = (n < N)[:, None] & (e < E)[None, :]
    s = tl.load(scores + place, mask=inside, other=-float("inf"))
    s = tl.where((n < N)[:, None], s, 0.0)
    exponentials = tl.exp(s - tl.max(s, axis=1)[:, None])
    p = exponentials / tl.sum(exponentials, axis=1)[:, None]
    left = s
    picked = tl.zeros((BLOCK, EP), tl.float32)
    for _ in tl.static_range(TOP):
        best = tl.argmax(left, axis=1, tie_break_left=True)
        is_best = e[None, :] == best[:, None]
        picked = tl.where(is_best, 1.0, picked)
        left = tl.where(is_best, -float("inf"), left)
    tl.store(probabilities + place, p, mask=inside)
    tl.store(chosen + place, picked, mask=inside)
    if GATE != 0:
        g = p * picked
        if GATE == 2:
            g = g / tl.sum(g, axis=1)[:, None]
        tl.store(gates + place, g, mask=inside)


@triton.jit
def _route_backward(
    probabilities,
    chosen,
    d_probabilities,
    d_gates,
    d_scores,
    N,
    E: tl.constexpr,
    EP: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, EP)
    place = n[:, None] * E + e[None, :]
    inside = (n < N)[:, None] & (e < E)[None, :]
    p = tl.load(probabilities + place, mask=inside, other=0.0)
    d_p = tl.load(d_probabilities + place, mask=inside, other=0.0)
    if GATE != 0:
        picked = tl.load(chosen + place, mask=inside, other=0.0)
        d_g = tl.load(d_gates + place, mask=inside, other=0.0)
        if GATE == 2:
            open_p = p * picked
            total = tl.sum(open_p, axis=1)
            total = tl.where(total > 0, total, 1.0)
            g = open_p / total[:, None]
            d_g = (d_g - tl.sum(d_g * g, axis=1)[:, None]) / total[:, None]
        d_p += d_g * picked
    d_s = p * (d_p - tl.sum(p * d_p, axis=1)[:, None])
    tl.store(d_scores + place, d_s, mask=inside)


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, top_k: int, gate: int) -> Any:
        experts = scores.shape[-1]
        scores = scores.contiguous()
        ctx.settings = {"E": experts, "EP": triton.next_power_of_2(experts), "GATE": gate, "BLOCK": 128}
        ctx.tokens = scores.numel() // experts
        probabilities, chosen = torch.empty_like(scores), torch.empty_like(scores)
        gates = chosen if gate == PLAIN else torch.empty_like(scores)
        _route[(triton.cdiv(ctx.tokens, 128),)](
            scores, probabilities, chosen, gates, ctx.tokens, TOP=top_k, **ctx.settings
        )
        ctx.save_for_backward(probabilities, chosen)
        ctx.set_materialize_grads(False)
        if gate == PLAIN:
            ctx.mark_non_differentiable(chosen)
            return chosen, probabilities
        ctx.mark_non_differentiable(chosen)
        return chosen, probabilities, gates

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        probabilities, chosen = ctx.saved_tensors
        d_p = gradients[1]
        d_g = gradients[2] if len(gradients) > 2 else None
        if d_p is None and d_g is None:
            return None, None, None
        settings = dict(ctx.settings)
        if d_g is None:  # only the balance loss is heard
            settings["GATE"], d_g = PLAIN, chosen
        d_p = torch.zeros_like(probabilities) if d_p is None else d_p.contiguous()
        d_scores = torch.empty_like(probabilities)
        _route_backward[(triton.cdiv(ctx.tokens, 128),)](
            probabilities, chosen, d_p, d_g.contiguous(), d_scores, ctx.tokens, **settings
        )
        return d_scores, None, None


def by_score(ffn: FeedForward, router: Float[Tensor, "M D E"], x: Float[Tensor, "M B R D"]) -> Routing:
    """`model.routing.by_score`; of equal scores the first expert is taken."""
    scores = (x.flatten(1, 2) @ router).unflatten(1, x.shape[1:3])
    gate = PLAIN if ffn.plain_gates else SWITCH if ffn.gate == "switch" else RENORMALISED
    chosen, probabilities, *gates = _Route.apply(scores, ffn.top_k, gate)
    return Routing(gates[0] if gates else chosen, chosen, probabilities)
