"""The router: scores, softmax, the k largest and the gates in one pass over the stream, and one back.

Where only some positions are answered at, the stream there is given too, so that its gradient and the router's
are joined in the one pass.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.kernels.triton.linear import padded, precision
from sparsity_moves.model.architecture import FeedForward
from sparsity_moves.model.routing import Routing

PLAIN, SWITCH, RENORMALISED = 0, 1, 2


@triton.jit
def _route(
    x,
    router,
    probabilities,
    chosen,
    gates,
    N,
    D: tl.constexpr,
    DP: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    TOP: tl.constexpr,
    GATE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    here = (n < N)[:, None]
    tile = tl.load(x + (m * N + n)[:, None] * D + d[None, :], mask=here & (d < D)[None, :], other=0.0)
    map_mask = (d < D)[:, None] & (e < E)[None, :]
    weight = tl.load(router + m * (D * E) + d[:, None] * E + e[None, :], mask=map_mask, other=0.0)
    s = tl.dot(tile, weight, input_precision=PRECISION)
    s = tl.where((e < E)[None, :], s, -float("inf"))
    exponentials = tl.exp(s - tl.max(s, axis=1)[:, None])
    p = exponentials / tl.sum(exponentials, axis=1)[:, None]
    # A GPU holds nothing for larger than what is no number, nor that for larger than the padding: no expert would be
    # open, and what stood in memory would pass for the output.
    left = tl.where(s == s, s, 0.0)
    picked = tl.zeros((BLOCK, EP), tl.float32)
    for _ in tl.static_range(TOP):
        best = tl.argmax(left, axis=1, tie_break_left=True)
        is_best = e[None, :] == best[:, None]
        picked = tl.where(is_best, 1.0, picked)
        left = tl.where(is_best, -float("inf"), left)
    place = (m * N + n)[:, None] * E + e[None, :]
    inside = here & (e < E)[None, :]
    tl.store(probabilities + place, p, mask=inside)
    tl.store(chosen + place, picked, mask=inside)
    if GATE != 0:
        g = p * picked
        if GATE == 2:
            g = g / tl.sum(g, axis=1)[:, None]
        tl.store(gates + place, g, mask=inside)


@triton.jit
def _route_backward(
    x,
    router,
    probabilities,
    chosen,
    d_probabilities,
    d_gates,
    d_answering,
    d_x,
    d_router,
    N,
    P: tl.constexpr,
    FIRST: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    GATE: tl.constexpr,
    SCORED: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    m = tl.program_id(1).to(tl.int64)
    part = tl.program_id(0)
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    map_mask = (d < D)[:, None] & (e < E)[None, :]
    weight = tl.load(router + m * (D * E) + d[:, None] * E + e[None, :], mask=map_mask, other=0.0)
    total = tl.zeros((DP, EP), tl.float32)
    if EVEN:
        d_everywhere = tl.load(d_probabilities + m * E + e, mask=e < E, other=0.0)[None, :]
    for start in range(0, CHUNK, BLOCK):
        n = part * CHUNK + start + tl.arange(0, BLOCK)
        here = (n < N)[:, None]
        wide = here & (d < D)[None, :]
        # The stream's own gradient, where it is answered at.
        b = n // P
        r = n % P - FIRST
        answered = ((r >= 0) & (r < R))[:, None] & wide
        rows = (m * (N // P) + b) * R + r
        d_tile = tl.load(d_answering + rows[:, None] * D + d[None, :], mask=answered, other=0.0)
        if SCORED:
            place = (m * N + n)[:, None] * E + e[None, :]
            inside = here & (e < E)[None, :]
            p = tl.load(probabilities + place, mask=inside, other=0.0)
            d_p = d_everywhere if EVEN else tl.load(d_probabilities + place, mask=inside, other=0.0)
            if GATE != 0:
                picked = tl.load(chosen + place, mask=inside, other=0.0)
                d_g = tl.load(d_gates + place, mask=inside, other=0.0)
                if GATE == 2:
                    open_p = p * picked
                    sums = tl.sum(open_p, axis=1)
                    sums = tl.where(sums > 0, sums, 1.0)
                    g = open_p / sums[:, None]
                    d_g = (d_g - tl.sum(d_g * g, axis=1)[:, None]) / sums[:, None]
                d_p += d_g * picked
            d_s = p * (d_p - tl.sum(p * d_p, axis=1)[:, None])
            tile = tl.load(x + (m * N + n)[:, None] * D + d[None, :], mask=wide, other=0.0)
            d_tile += tl.dot(d_s, tl.trans(weight), input_precision=PRECISION)
            total += tl.dot(tl.trans(tile), d_s, input_precision=PRECISION)
        tl.store(d_x + (m * N + n)[:, None] * D + d[None, :], d_tile, mask=wide)
    if SCORED:
        place = d_router + (m * tl.num_programs(0) + part) * (D * E) + d[:, None] * E + e[None, :]
        tl.store(place, total, mask=map_mask)


def same_for_all(gradient: Float[Tensor, "M B P E"]) -> tuple[Tensor, bool]:
    """The gradient in memory, and whether it is one row for all tokens, (M, E), as a balance loss alone gives it."""
    even = all(gradient.shape[dim] == 1 or gradient.stride(dim) == 0 for dim in (1, 2))
    return (gradient[:, 0, 0] if even else gradient).contiguous(), even


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, router: Tensor, top_k: int, gate: int, first: int, answers: int) -> Any:
        models, batch, positions, width = x.shape
        experts = router.shape[-1]
        tokens = batch * positions
        ctx.settings = {
            "D": width,
            "DP": triton.next_power_of_2(width),
            "E": experts,
            "EP": padded(experts),
            "PRECISION": precision(),
            "BLOCK": 64 if width <= 128 else 32,
        }
        ctx.gate, ctx.positions, ctx.first, ctx.answers, ctx.tokens = gate, positions, first, answers, tokens
        x, router = x.contiguous(), router.contiguous()
        probabilities = x.new_empty(models, batch, positions, experts)
        chosen = torch.empty_like(probabilities)
        gates = chosen if gate == PLAIN else torch.empty_like(probabilities)
        grid = (triton.cdiv(tokens, ctx.settings["BLOCK"]), models)
        _route[grid](x, router, probabilities, chosen, gates, tokens, TOP=top_k, GATE=gate, **ctx.settings)
        answering = x.view_as(x) if answers == positions else x[:, :, first : first + answers].contiguous()
        ctx.save_for_backward(x, router, probabilities, chosen)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(chosen)
        if gate == PLAIN:
            return answering, chosen, probabilities
        return answering, chosen, probabilities, gates

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        x, router, probabilities, chosen = ctx.saved_tensors
        models, batch, _, width = x.shape
        d_answering, _, d_p, d_g = (*gradients, None)[:4]
        if d_answering is None:
            d_answering = x.new_zeros(models, batch, ctx.answers, width)
        scored = d_p is not None or d_g is not None
        gate = PLAIN if d_g is None else ctx.gate  # then only the balance loss is heard
        d_p, even = (x.new_zeros(models, router.shape[2]), True) if d_p is None else same_for_all(d_p)
        tokens = ctx.tokens
        # Tiles half as tall as on the way there, of which one is loaded while another is worked on: three programs
        # then share a multiprocessor.
        block = ctx.settings["BLOCK"] // 2
        of = ctx.settings | {"BLOCK": block}
        parts = max(1, min(triton.cdiv(tokens, 4 * block), 1056 // models))
        chunk = triton.cdiv(triton.cdiv(tokens, parts), block) * block
        parts = triton.cdiv(tokens, chunk)
        d_x = torch.empty_like(x)
        d_router = x.new_empty(models, parts, *router.shape[1:])
        _route_backward[(parts, models)](
            x,
            router,
            probabilities,
            chosen,
            d_p,
            chosen if d_g is None else d_g.contiguous(),
            d_answering.contiguous(),
            d_x,
            d_router,
            tokens,
            P=ctx.positions,
            FIRST=ctx.first,
            R=ctx.answers,
            GATE=gate,
            SCORED=scored,
            EVEN=even,
            CHUNK=chunk,
            num_stages=2,
            **of,
        )
        return d_x, d_router.sum(1) if scored else None, None, None, None, None


def route(
    ffn: FeedForward,
    router: Float[Tensor, "M D E"],
    x: Float[Tensor, "M B P D"],
    answer: tuple[int, ...],
    held: tuple[int, ...],
) -> tuple[Routing, Float[Tensor, "M B R D"]]:
    """`model.routing.by_score` at all positions held, and x at those answered at, which are neighbours.

    Of equal scores the first expert is taken.
    """
    gate = PLAIN if ffn.plain_gates else SWITCH if ffn.gate == "switch" else RENORMALISED
    first = held.index(answer[0])
    answering, chosen, probabilities, *gates = _Route.apply(x, router, ffn.top_k, gate, first, len(answer))
    return Routing(gates[0] if gates else chosen, chosen, probabilities), answering
