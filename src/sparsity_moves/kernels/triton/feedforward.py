"""The masked FFN with its elementwise part in one pass each way.

The products are the vendor's. Between them, one kernel adds the bias, applies φ, multiplies by W_up's half and by
the gate; going back, one kernel gives the gradients of all of these. A block that is closed for a token is not
read. Hidden units thus cross memory eleven times a step; written as single operations it would be about twenty.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.kernels.triton.linear import summed_product
from sparsity_moves.model.architecture import FeedForward, Parameters
from sparsity_moves.model.feedforward import ACTIVATIONS
from sparsity_moves.model.routing import Routing

NONE, RELU, SILU, GELU = 0, 1, 2, 3
CODES = {"none": NONE, "relu": RELU, "silu": SILU, "gelu": GELU}
TILE = 1024
"""Hidden units a program holds at once."""
OPEN, SHUT, WEIGHED, PATH = 0, 1, 2, 3
"""Gates: every block open; 0 or 1; any number, with a gradient of its own; the nodes on a path down a tree."""


@triton.jit
def _phi(x, ACT: tl.constexpr):
    if ACT == 1:
        y = tl.maximum(x, 0.0)
    elif ACT == 2:
        y = x * tl.sigmoid(x)
    elif ACT == 3:
        y = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    else:
        y = x
    return y


@triton.jit
def _phi_slope(x, ACT: tl.constexpr):
    if ACT == 1:
        y = tl.where(x > 0, 1.0, 0.0)
    elif ACT == 2:
        s = tl.sigmoid(x)
        y = s * (1.0 + x * (1.0 - s))
    elif ACT == 3:
        y = 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        y = tl.full(x.shape, 1.0, tl.float32)
    return y


@triton.jit
def _walk(
    before, bias, leaves, N, W: tl.constexpr, TREES: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr,
    TP: tl.constexpr,
):  # fmt: skip
    """Where each token's path down each tree ends: the leaf's number in heap order, from 1."""
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tree = tl.arange(0, TP)
    inside = (n < N)[:, None] & (tree < TREES)[None, :]
    root = tree * ((2 << DEPTH) - 1)
    node = tl.zeros((BLOCK, TP), tl.int32)
    for _ in tl.static_range(DEPTH):
        at = root[None, :] + node
        a = tl.load(before + (m * N + n)[:, None] * W + at, mask=inside, other=0.0)
        a += tl.load(bias + m * W + at, mask=inside, other=0.0)
        node = 2 * node + 1 + (a > 0).to(tl.int32)
    tl.store(leaves + (m * N + n)[:, None] * TREES + tree[None, :], node + 1, mask=inside)


@triton.jit
def _on_path(leaves, token, unit, inside, TREES: tl.constexpr, DEPTH: tl.constexpr):
    """Whether a node is the leaf or above it: in heap order from 1, halving a number gives its parent's.

    Units past the last tree are on no path.
    """
    nodes: tl.constexpr = (2 << DEPTH) - 1
    inside = inside & (unit < TREES * nodes)[None, :]
    leaf = tl.load(leaves + token[:, None] * TREES + (unit // nodes)[None, :], mask=inside, other=0)
    number = (unit % nodes + 1)[None, :]
    on = leaf == number
    for above in tl.static_range(1, DEPTH + 1):
        on = on | ((leaf >> above) == number)
    return on


@triton.jit
def _open(
    before,
    up,
    bias,
    gates,
    out,
    N,
    E: tl.constexpr,
    W: tl.constexpr,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BIASED: tl.constexpr,
    GATE: tl.constexpr,
    TREES: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WP: tl.constexpr,
):
    """Hidden units of one expert for a block of tokens: gate · φ(before + bias) [· up]."""
    m = tl.program_id(2).to(tl.int64)
    e = tl.program_id(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    unit = tl.arange(0, WP)
    inside = (n < N)[:, None] & (unit < W)[None, :]
    place = (m * N + n)[:, None] * (E * W) + e * W + unit[None, :]
    wanted = inside
    if GATE == 3:
        wanted = inside & _on_path(gates, m * N + n, unit, inside, TREES, DEPTH)
    elif GATE != 0:
        gate = tl.load(gates + (m * N + n) * E + e, mask=n < N, other=0.0)
        wanted = inside & (gate != 0.0)[:, None]
    x = tl.load(before + place, mask=wanted, other=0.0)
    if BIASED:
        x += tl.load(bias + (m * E + e) * W + unit, mask=unit < W, other=0.0)[None, :]
    h = _phi(x, ACT)
    if GATED:
        h = h * tl.load(up + place, mask=wanted, other=0.0)
    if GATE == 2:
        h = h * gate[:, None]
    tl.store(out + place, tl.where(wanted, h, 0.0), mask=inside)


@triton.jit
def _open_backward(
    before,
    up,
    bias,
    gates,
    d_out,
    d_before,
    d_up,
    d_bias,
    d_gates,
    N,
    E: tl.constexpr,
    W: tl.constexpr,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    BIASED: tl.constexpr,
    GATE: tl.constexpr,
    TREES: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """`d_before` may be `d_out`, and `d_up` may be `up`: every element is read before it is written."""
    m = tl.program_id(2).to(tl.int64)
    e = tl.program_id(1)
    part = tl.program_id(0)
    unit = tl.arange(0, WP)
    if BIASED:
        b = tl.load(bias + (m * E + e) * W + unit, mask=unit < W, other=0.0)[None, :]
    total = tl.zeros((WP,), tl.float32)
    for start in range(0, CHUNK, BLOCK):
        n = part * CHUNK + start + tl.arange(0, BLOCK)
        inside = (n < N)[:, None] & (unit < W)[None, :]
        place = (m * N + n)[:, None] * (E * W) + e * W + unit[None, :]
        wanted = inside
        if GATE == 3:
            wanted = inside & _on_path(gates, m * N + n, unit, inside, TREES, DEPTH)
        elif GATE != 0:
            gate = tl.load(gates + (m * N + n) * E + e, mask=n < N, other=0.0)
            wanted = inside & (gate != 0.0)[:, None]
        x = tl.load(before + place, mask=wanted, other=0.0)
        if BIASED:
            x += b
        d = tl.load(d_out + place, mask=wanted, other=0.0)
        if GATED:
            u = tl.load(up + place, mask=wanted, other=0.0)
        if GATE == 2:
            h = _phi(x, ACT)
            if GATED:
                h = h * u
            tl.store(d_gates + (m * N + n) * E + e, tl.sum(tl.where(wanted, d * h, 0.0), axis=1), mask=n < N)
            d = d * gate[:, None]
        if GATED:
            tl.store(d_up + place, tl.where(wanted, d * _phi(x, ACT), 0.0), mask=inside)
            d = d * u
        d = tl.where(wanted, d * _phi_slope(x, ACT), 0.0)
        tl.store(d_before + place, d, mask=inside)
        if BIASED:
            total += tl.sum(d, axis=0)
    if BIASED:
        parts = tl.num_programs(0)
        tl.store(d_bias + ((m * parts + part) * E + e) * W + unit, total, mask=unit < W)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_in: Tensor,
        w_up: Tensor | None,
        b_in: Tensor | None,
        w_out: Tensor,
        b_out: Tensor | None,
        gates: Tensor | None,
        experts: int,
        activation: str,
        gate: int,
        depth: int,
    ) -> Tensor:
        models, tokens = x.shape[:2]
        trees = w_in.shape[-1] // ((2 << depth) - 1) if gate == PATH else 0
        ctx.units = w_in.shape[-1]
        if (
            trees and b_in is not None and (more := -ctx.units % 8)
        ):  # rows that the vendor's products read whole
            w_in, b_in, w_out = F.pad(w_in, (0, more)), F.pad(b_in, (0, more)), F.pad(w_out, (0, 0, 0, more))
        width = w_in.shape[-1] // experts
        padded = triton.next_power_of_2(width)
        x = x.contiguous()
        gates = None if gates is None else gates.contiguous()
        before = x @ w_in
        up = None if w_up is None else x @ w_up
        hidden = torch.empty_like(before)
        ctx.settings = {
            "E": experts,
            "W": width,
            "ACT": CODES[activation],
            "GATED": w_up is not None,
            "BIASED": b_in is not None,
            "GATE": gate,
            "TREES": trees,
            "DEPTH": depth,
            "BLOCK": max(1, TILE // padded),
            "WP": padded,
        }
        grid = (triton.cdiv(tokens, ctx.settings["BLOCK"]), experts, models)
        # A pointer that the settings leave unread may be any.
        bias = before if b_in is None else b_in.contiguous()
        if gate == PATH:
            gates = torch.empty(models, tokens, trees, dtype=torch.int32, device=x.device)
            side = triton.next_power_of_2(trees)
            block = max(1, 256 // side)
            _walk[(triton.cdiv(tokens, block), models)](
                before, bias, gates, tokens, W=width, TREES=trees, DEPTH=depth, BLOCK=block, TP=side
            )
        _open[grid](
            before,
            before if up is None else up,
            bias,
            before if gates is None else gates,
            hidden,
            tokens,
            **ctx.settings,
        )
        ctx.save_for_backward(x, w_in, w_up, b_in, w_out, b_out, gates, before, up, hidden)
        if b_out is None:
            return hidden @ w_out
        return torch.baddbmm(b_out if gates is None else gates @ b_out, hidden, w_out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, w_in, w_up, b_in, w_out, b_out, gates, before, up, hidden = ctx.saved_tensors
        upstream = gradients[0].contiguous()
        models, tokens = x.shape[:2]
        of = ctx.settings
        d_w_out = summed_product(hidden, upstream)
        d_gates = torch.empty_like(gates) if of["GATE"] == WEIGHED else None
        d_b_out = None
        if b_out is not None:
            ones = gates if gates is not None else x.new_ones(models, tokens, 1)
            d_b_out = ones.transpose(1, 2) @ upstream
        d_hidden = upstream @ w_out.transpose(1, 2)
        d_up = torch.empty_like(up) if up is not None else None
        parts = max(1, min(64, 4096 // (models * of["E"]), triton.cdiv(tokens, 4 * of["BLOCK"])))
        chunk = triton.cdiv(triton.cdiv(tokens, parts), of["BLOCK"]) * of["BLOCK"]
        parts = triton.cdiv(tokens, chunk)
        d_bias = x.new_empty(models, parts, before.shape[-1]) if b_in is not None else before
        _open_backward[(parts, of["E"], models)](
            before,
            before if up is None else up,
            before if b_in is None else b_in.contiguous(),
            before if gates is None else gates,
            d_hidden,
            d_hidden,
            before if d_up is None else d_up,
            d_bias,
            before if d_gates is None else d_gates,
            tokens,
            **of,
            CHUNK=chunk,
        )
        d_before = d_hidden
        d_w_in = summed_product(x, d_before)
        d_x = d_before @ w_in.transpose(1, 2)
        d_w_up = None
        if d_up is not None:
            d_w_up = summed_product(x, d_up)
            d_x = torch.baddbmm(d_x, d_up, w_up.transpose(1, 2))
        if d_gates is not None and b_out is not None:
            d_gates += upstream @ b_out.transpose(1, 2)
        d_b_in = d_bias.sum(1)[:, : ctx.units] if b_in is not None else None
        d_w_in, d_w_out = d_w_in[..., : ctx.units], d_w_out[:, : ctx.units]
        return d_x, d_w_in, d_w_up, d_b_in, d_w_out, d_b_out, d_gates, None, None, None, None


def masked(
    ffn: FeedForward, p: Parameters, name: str, x: Float[Tensor, "M N D"], routing: Routing | None
) -> Float[Tensor, "M N D"]:
    """The FFN's output; equal to `model.feedforward`'s masked form up to rounding. Trees find their own gates."""
    tree = ffn.router == "tree"
    gates = None if routing is None else routing.gates.flatten(1, 2)
    gate = PATH if tree else OPEN if routing is None else SHUT if ffn.plain_gates else WEIGHED
    after = tree and ffn.nonlinearity == "sum"
    out: Tensor = _FeedForward.apply(
        x,
        p[name + "w_in"],
        p.get(name + "w_up"),
        p.get(name + "b_in"),
        p[name + "w_out"],
        p.get(name + "b_out"),
        gates,
        ffn.experts,
        "none" if after else ffn.activation,
        gate,
        ffn.tree_depth,
    )
    return ACTIVATIONS[ffn.activation](out) if after else out
