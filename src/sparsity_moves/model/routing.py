"""Who is sent where: the gate g of the FFN's equation.

A learned router is a bias-free linear map of the residual stream, softmax, top-k. A frozen one is the same map
at its initial weights: a fixed, deterministic function of the residual stream, neither sampling nor hashing.
Hash routing never looks at the residual stream: `hash` sends a token by its symbol (Roller et al. 2021),
`hash_context` by everything the position can see, so that the partition carries no usable information.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.model.architecture import Architecture, FeedForward


def pick(x: Tensor, wanted: tuple[int, ...], held: tuple[int, ...], dim: int = 2) -> Tensor:
    """The wanted positions of a tensor that holds `held`, along `dim`; a view where they are neighbours."""
    if wanted == held:
        return x
    at = [held.index(position) for position in wanted]
    if at == list(range(at[0], at[0] + len(at))):
        return x.narrow(dim, at[0], len(at))
    return x.index_select(dim, torch.tensor(at, device=x.device))


class Routing(NamedTuple):
    """Gates of every token at R positions, and the router's probabilities where it has any."""

    gates: Float[Tensor, "M B R E"]
    chosen: Float[Tensor, "M B R E"]
    """1 where the expert is among the token's k, else 0."""
    probabilities: Float[Tensor, "M B R E"] | None

    def at(self, wanted: tuple[int, ...], held: tuple[int, ...]) -> Routing:
        """The same at some of the positions held."""
        return Routing(*(None if x is None else pick(x, wanted, held) for x in self))  # type: ignore[arg-type]


def by_score(ffn: FeedForward, router: Float[Tensor, "M D E"], x: Float[Tensor, "M B R D"]) -> Routing:
    """Softmax, the k largest, then renormalised to sum 1 or left as they are.

    With k = 1 the renormalised gate is p / p = 1 whatever p is, so the task's gradient to the router, 1/p - p/p²,
    is exactly zero: only the balance loss trains it. In floating point the two terms may round apart, and Adam
    would blow up what is left; so the division is left out. The Switch gate p (Fedus et al. 2021) has no such hole.
    """
    # Experts come before tokens while we compute: a softmax along the last axis of a few is slow on a CPU.
    scores = (x.flatten(1, 2) @ router).transpose(1, 2).contiguous()  # (M, E, N)
    probabilities = scores.softmax(1).transpose(1, 2).unflatten(1, x.shape[1:3])
    best = scores.transpose(1, 2).unflatten(1, x.shape[1:3]).topk(ffn.top_k, dim=-1).indices
    chosen = torch.zeros_like(probabilities).scatter_(-1, best, 1.0)
    if ffn.plain_gates:
        return Routing(chosen, chosen, probabilities)
    gates = probabilities * chosen
    if ffn.gate == "renormalised":
        gates = gates / gates.sum(-1, keepdim=True)
    return Routing(gates, chosen, probabilities)


def by_hash(
    architecture: Architecture,
    table: Int[Tensor, "M ..."],
    tokens: Int[Tensor, "M B T"],
    positions: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Routing:
    """The expert of each position from a fixed random table, for `positions` only."""
    everywhere = tuple(range(tokens.shape[-1]))
    if architecture.ffn.router == "hash":
        expert = table.gather(1, tokens.flatten(1)).view_as(tokens)
        expert = pick(expert, positions, everywhere)
    else:
        place = torch.arange(tokens.shape[-1], device=tokens.device)
        vocabulary = architecture.task.vocabulary
        code = table.flatten(1).gather(1, (place * vocabulary + tokens).flatten(1)).view_as(tokens)
        # A bidirectional position sees every token; its own code, counted twice, tells positions apart.
        seen = code.cumsum(-1) if architecture.task.causal else code.sum(-1, keepdim=True) + code
        expert = pick(seen, positions, everywhere) % architecture.ffn.experts
    gates = torch.nn.functional.one_hot(expert, architecture.ffn.experts).to(dtype)
    return Routing(gates, gates, None)


def balance_loss(ffn: FeedForward, *routings: Routing) -> Float[Tensor, " M"]:
    """E · Σ_i f_i P_i over the tokens of all routings (Fedus et al. 2021, eq. 4): 1 when the load is even.

    f_i is the share of assignments (k a token) that expert i gets, without gradient; P_i its mean probability.
    Each routing is summed by itself: all tokens of a model have one gradient, which autograd then never writes out.
    """
    probabilities = [routing.probabilities for routing in routings if routing.probabilities is not None]
    if not probabilities:
        return routings[0].gates.new_zeros(len(routings[0].gates))

    def mean(parts: list[Tensor]) -> Float[Tensor, "M E"]:
        tokens = sum(part[0, ..., 0].numel() for part in parts)
        return reduce(torch.add, (part.sum((1, 2)) for part in parts)) / tokens

    load = mean([routing.chosen for routing in routings]) / ffn.top_k
    return ffn.experts * (load * mean(probabilities)).sum(-1)
