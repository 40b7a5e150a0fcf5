"""The forward pass: tokens in, a trace out. What a measure wants to see it finds in the trace; what it wants to
change it passes as an edit. There are no hooks and no state.

Only what is asked for is computed: the last layer answers at the positions asked for only, and
the first layer's residual stream depends on (position, token) alone, so its Q, K and V are tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.model.architecture import Architecture, FeedForward, Parameters
from sparsity_moves.model.attention import attend_by_table, attention_pattern, later, mix, rows
from sparsity_moves.model.feedforward import combine, hidden_units
from sparsity_moves.model.routing import Routing, balance_loss, by_hash, by_score, pick
from sparsity_moves.model.tree import by_path

Edit = Callable[[Tensor], Tensor]
"""Takes what a component computed, gives what is used in its place; the shape stays."""

Positions = tuple[int, ...]
Route = Callable[[FeedForward, Tensor, Tensor, Positions, Positions], tuple[Routing, Tensor]]
"""The FFN's settings, the router, the stream at some positions, those that are answered at, and all of them: the
routing everywhere, and the stream at the first."""


@dataclass(frozen=True)
class Kernels:
    """Faster forms of single pieces, which take no edits inside them; None is the reference."""

    linear: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor] | None = None
    """x (M, N, I), weight, bias, y (M, N, O) or None: x @ weight + bias + y."""
    lookup: Callable[[Tensor, Tensor, tuple[int, ...]], Tensor] | None = None
    """Table (M, S, D), index (M, B, T), neighbouring positions: rows (M, B, P, D)."""
    attend: Callable[[Tensor, Tensor | None, tuple[int, ...], int, int, bool], Tensor] | None = None
    """Queries, keys and values (M, S, 3D) of table rows or tokens, index, neighbouring positions, length, heads,
    causal: mixtures (M, B, P, H, K)."""
    route: Route | None = None
    glance: Callable[..., tuple[Tensor, Tensor]] | None = None
    """Probabilities and choices of a router (M, B, P, E) at neighbouring positions whose stream nobody wants, in a
    first layer without norm: from Q, K, V tables, each row's own scores (M, S, E), the output matrix times the
    router (M, D, E), index, positions, heads, causal and k."""
    feed_forward: Callable[[FeedForward, Parameters, str, Tensor, Routing | None, bool], Tensor] | None = None
    """The FFN's output from its settings, the parameters and their prefix, x (M, N, D) and the routing; with the last
    argument x is added to it."""


REFERENCE = Kernels()


@dataclass(frozen=True)
class Layer:
    """What one layer computed, at the R positions it was asked for."""

    pattern: Float[Tensor, "M B H R T"] | None
    """Attention weights; None where a kernel kept them to itself."""
    heads: Float[Tensor, "M B R H K"]
    """Each head's mixture of values, before the output matrix."""
    attended: Float[Tensor, "M B R D"] | None
    """What attention writes to the stream; None where a kernel has added it at once."""
    hidden: Float[Tensor, "M B R W"] | None
    """The FFN's hidden units h, before any gate; None where a kernel computed the output."""
    routing: Routing | None
    """Gates at the R positions; None where every block is open."""
    written: Float[Tensor, "M B R D"] | None
    """What the FFN writes to the stream; None where a kernel has added it at once."""

    @property
    def attention(self) -> Float[Tensor, "M B R D"]:
        """Attention's output. Raises `ValueError` where a kernel kept it to itself."""
        if self.attended is None:
            raise ValueError("a kernel added this attention's output to the stream at once")
        return self.attended

    @property
    def ffn(self) -> Float[Tensor, "M B R D"]:
        """The FFN's output. Raises `ValueError` where a kernel kept it to itself."""
        if self.written is None:
            raise ValueError("a kernel added this FFN's output to the stream at once")
        return self.written


@dataclass(frozen=True)
class Trace:
    """Everything a forward pass computed."""

    embedding: Float[Tensor, "M B R D"]
    """Token plus position, at the R positions asked for."""
    layers: tuple[Layer, ...]
    residual: Float[Tensor, "M B R D"]
    """The final residual stream: `embedding` plus every component's output."""
    final: Float[Tensor, "M B R D"]
    """What is unembedded: `residual`, normalised where the model has a norm."""
    unembed: Float[Tensor, "M D C"]
    balance: Float[Tensor, " M"]
    """The balance loss, summed over the layers; zero where none was asked for."""

    @cached_property
    def logits(self) -> Float[Tensor, "M B R C"]:
        return per_token(self.final, self.unembed)


def components(architecture: Architecture) -> tuple[str, ...]:
    """The names an edit can have; only experts and trees have gates.

    `heads` is every head's mixture: (M, B, R, H, d_head)."""
    gates = () if architecture.ffn.router == "none" else ("gates",)
    parts = ("pattern", "heads", "attention", "hidden", *gates, "ffn")
    return ("embedding", *(f"{layer}.{part}" for layer in range(architecture.depth) for part in parts))


def normalise(p: Parameters, name: str, x: Float[Tensor, "M ... D"]) -> Float[Tensor, "M ... D"]:
    """RMSNorm with a learned scale, or nothing where the model has no norm."""
    if name not in p:
        return x
    scale = p[name].view(len(x), *(1,) * (x.dim() - 2), -1)
    return F.rms_norm(x, x.shape[-1:]) * scale


def neighbours(positions: tuple[int, ...]) -> bool:
    """Whether the positions follow one another."""
    return positions == tuple(range(positions[0], positions[0] + len(positions)))


def per_token(
    x: Float[Tensor, "M B P I"], weight: Float[Tensor, "M I O"], bias: Float[Tensor, "M O"] | None = None
) -> Float[Tensor, "M B P O"]:
    """Each model's linear map at every token."""
    flat = x.flatten(1, 2)
    out = flat @ weight if bias is None else torch.baddbmm(bias[:, None], flat, weight)
    return out.view(*x.shape[:3], -1)


def forward(
    architecture: Architecture,
    p: Parameters,
    tokens: Int[Tensor, "M B T"],
    *,
    edits: Mapping[str, Edit] | None = None,
    positions: tuple[int, ...] | None = None,
    balance_positions: tuple[int, ...] = (),
    kernels: Kernels = REFERENCE,
) -> Trace:
    """Run M models on B sequences each.

    `positions` are those to answer at (the task's read-outs unless given). `edits` maps a component's name
    (see `components`) to a function of its output. With `balance_positions` the trace carries the balance loss
    over the tokens there, which costs attention at positions that may not be read out. `kernels` compute single
    pieces in place of the reference, wherever no edit reaches inside them.

    Raises `UserError` for an edit of a component that the model does not have.
    """
    edits = dict(edits or {})
    if unknown := sorted(set(edits) - set(components(architecture))):
        raise UserError(
            f"no component is called {', '.join(unknown)}; there are {', '.join(components(architecture))}"
        )

    def edited(name: str, value: Tensor) -> Tensor:
        return edits[name](value) if name in edits else value

    task, ffn = architecture.task, architecture.ffn
    everywhere = tuple(range(tokens.shape[-1]))
    asked = task.read_out if positions is None else positions
    balance = p["embed"].new_zeros(len(tokens))

    # The residual stream starts as one of T·V rows, and `index` says which.
    table = (p["embed"][:, None] + p["position"][:, :, None]).flatten(1, 2)
    index = torch.arange(len(everywhere), device=tokens.device) * task.vocabulary + tokens
    by_table = not {"embedding", "0.pattern"} & set(edits)
    short = architecture.depth == 1 and by_table  # then nobody looks at the stream at other positions
    glanced = tuple(position for position in balance_positions if position not in asked)
    if kernels.glance is None or not (short and glanced and neighbours(glanced) and ffn.scores) or edits:
        glanced = ()
    if "0.ffn.norm" in p:
        glanced = ()
    streamed = tuple(position for position in balance_positions if position not in glanced)
    held = tuple(sorted({*asked, *streamed})) if short else everywhere
    if kernels.lookup is not None and neighbours(held):
        embedding = kernels.lookup(table, index, held)
    else:
        embedding = rows(table, pick(index, held, everywhere))
    embedding = residual = edited("embedding", embedding)  # (M, B, P, D)
    layers = []
    for number in range(architecture.depth):
        name = f"{number}."
        last = number == architecture.depth - 1
        answer = asked if last else everywhere
        needed = tuple(sorted({*answer, *streamed}))

        weight = p[name + "attention.qkv"]
        from_table = number == 0 and by_table
        if from_table:
            projected = normalise(p, "0.attention.norm", table) @ weight  # (M, T·V, 3D)
        else:
            projected = per_token(normalise(p, name + "attention.norm", residual), weight)
        pattern = None
        if kernels.attend is not None and neighbours(needed) and name + "pattern" not in edits:
            which, flat = (index, projected) if from_table else (None, projected.flatten(1, 2))
            heads = kernels.attend(flat, which, needed, len(everywhere), architecture.heads, task.causal)
        elif from_table:
            asking = pick(index, needed, everywhere)
            heads, pattern = attend_by_table(projected, architecture.heads, asking, index, task.causal)
        else:
            query, key, value = projected.unflatten(-1, (3, architecture.heads, -1)).unbind(3)
            hidden = later(needed, len(everywhere), tokens.device) if task.causal else None
            pattern = attention_pattern(pick(query, needed, everywhere), key, hidden)
            pattern = edited(name + "pattern", pattern)
            heads = mix(pattern, value)
        heads = edited(name + "heads", heads)  # (M, B, P, H, K)
        out = (p[name + "attention.out"], p[name + "attention.out_bias"])
        residual = pick(residual, needed, held)
        attention = None
        if kernels.linear is not None and name + "attention" not in edits:
            onto = residual.flatten(1, 2)
            residual = kernels.linear(heads.flatten(3).flatten(1, 2), *out, onto).view_as(residual)
        else:
            attention = edited(name + "attention", per_token(heads.flatten(3), *out))
            residual = residual + attention

        stream = answering = normalise(p, name + "ffn.norm", residual)
        plain = stream is residual  # without a norm the FFN reads the residual stream itself
        routing = None
        if ffn.scores and kernels.route is not None and neighbours(needed) and neighbours(answer):
            routing, answering = kernels.route(ffn, p[name + "ffn.router"], stream, answer, needed)
        else:
            if ffn.scores:
                routing = by_score(ffn, p[name + "ffn.router"], stream)
            elif ffn.router.startswith("hash"):
                routing = by_hash(architecture, p[name + "ffn.hash"], tokens, needed, stream.dtype)
            answering = pick(stream, answer, needed)
        if routing is not None:
            if balance_positions:
                seen_by_router = [routing.at(streamed, needed)]
                if glanced and kernels.glance is not None:
                    router = p[name + "ffn.router"]
                    own, reading = (table + out[1][:, None]) @ router, out[0] @ router
                    probabilities, chosen = kernels.glance(
                        projected, own, reading, index, positions=glanced, heads=architecture.heads,
                        causal=task.causal, top_k=ffn.top_k,
                    )  # fmt: skip
                    seen_by_router.append(Routing(chosen, chosen, probabilities))
                balance = balance + balance_loss(ffn, *seen_by_router)
            routing = routing.at(answer, needed)
            routing = routing._replace(gates=edited(name + "gates", routing.gates))
        residual = answering if plain else pick(residual, answer, needed)
        shape = residual.shape[1:3]
        flat = answering.flatten(1, 2)
        units = output = None
        tree = ffn.router == "tree"
        # The kernel walks trees itself, so it knows neither edits of their gates nor dead branches.
        reaching = {name + "hidden", *([name + "gates"] if tree else [])} & set(edits)
        if kernels.feed_forward is not None and not reaching and name + "ffn.alive" not in p:
            added = plain and name + "ffn" not in edits
            output = kernels.feed_forward(ffn, p, name + "ffn.", flat, routing, added).unflatten(1, shape)
            if added:
                residual, output = output, None
        else:
            units = hidden_units(ffn, p, name + "ffn.", flat).unflatten(1, shape)
            if tree:
                routing = by_path(ffn, units, p.get(name + "ffn.alive"))
                routing = routing._replace(gates=edited(name + "gates", routing.gates))
            units = edited(name + "hidden", units)
            gates = None if routing is None else routing.gates.flatten(1, 2)
            output = combine(ffn, p, name + "ffn.", units.flatten(1, 2), gates).unflatten(1, shape)
        if output is not None:
            output = edited(name + "ffn", output)
            residual = residual + output
        there = (answer, needed)
        seen = None if pattern is None else pick(pattern, *there, 3)
        attended = None if attention is None else pick(attention, *there)
        layers.append(Layer(seen, pick(heads, *there), attended, units, routing, output))
    unembed = p["embed"].transpose(1, 2) if task.tied else p["unembed"]
    final = normalise(p, "norm", residual)
    return Trace(pick(embedding, asked, held), tuple(layers), residual, final, unembed, balance)
