"""What the router sorts by, and what each expert is for."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.measures.tidy import Columns, Subject, joined, tidy
from sparsity_moves.model import Routing, forward


def entropy(counts: Float[Tensor, "... K"]) -> Float[Tensor, ...]:
    """Of the distribution that counts give, in nats; 0 where there are none."""
    whole = counts.sum(-1, keepdim=True).clamp(min=1)
    share = counts / whole
    found: Tensor = -torch.special.xlogy(share, share).sum(-1)
    return found


def information(table: Float[Tensor, "M R E O"]) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """What the expert tells of the operation, from how often they meet at each read-out.

    First the mutual information over the mean of both entropies (0 is none, 1 is all; scikit-learn's
    `normalized_mutual_info_score`). Then what it tells beyond the read-out: the mutual information within each
    read-out, over the operation's entropy there, both averaged over the read-outs. NaN where nothing is to be told.
    """

    def mutual(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        expert, operation = entropy(counts.sum(-1)), entropy(counts.sum(-2))
        return expert, operation, expert + operation - entropy(counts.flatten(-2))

    expert, operation, both = mutual(table.sum(1))
    _, there, within = mutual(table)
    return both.clamp(min=0) / ((expert + operation) / 2), within.clamp(min=0).mean(1) / there.mean(1)


def meetings(
    chosen: Float[Tensor, "M N R E"], operations: Bool[Tensor, "M N R O"]
) -> Float[Tensor, "M R E O"]:
    """How often each expert is the first of a token that needs each operation, by read-out."""
    return chosen.double().permute(0, 2, 3, 1) @ operations.double().transpose(1, 2)


def first(routing: Routing | None) -> Float[Tensor, "M N R E"]:
    """One-hot: the expert with the largest gate."""
    assert routing is not None, "the layer has experts"
    return torch.nn.functional.one_hot(routing.gates.argmax(-1), routing.gates.shape[-1]).double()


@torch.no_grad()
def routing_parts(subject: Subject) -> list[Columns]:
    """Loads, knock-outs and information of the last layer's experts.

    Columns: `expert` (None is the whole layer), `operation` (None is all), `load` (share of the operation's tokens
    for which the expert is open), `accuracy` with everything there, `knocked_out` (accuracy with the expert's output
    zero; the others' gates stay); and in the row where both are None: `nmi` (see `information`), `within` (beyond
    the read-out), and the same of the null, the router at its initial weights in the trained model: `initial_nmi`,
    `initial_within`. A frozen router is its own null; hash routing has none. The other null is the frozen twin's
    `nmi`: a run of its own with the same seed.

    Raises `UserError` where there are no experts.
    """
    architecture, sequences = subject.architecture, subject.sequences
    task, ffn = architecture.task, architecture.ffn
    if ffn.experts == 1:  # trees have measures of their own
        raise UserError("a layer without experts has no routing")
    scored, last = list(task.scored), architecture.depth - 1
    operations = sequences.operations[:, :, scored]
    kinds = torch.arange(len(task.operation_names), device=operations.device)
    needs = operations[..., None] == kinds  # (M, N, R, O)
    member = torch.cat([torch.ones_like(needs[..., :1]), needs], -1).flatten(1, 2).float()
    size = member.sum(1)

    def right(edits: dict[str, Any] | None = None) -> Float[Tensor, "M O"]:
        logits = (
            forward(architecture, subject.parameters, sequences.tokens, edits=edits).logits
            if edits
            else (subject.trace.logits)
        )
        is_so = (logits.argmax(-1) == sequences.targets)[:, :, scored].flatten(1).float()
        return (is_so[:, None] @ member)[:, 0] / size

    routing = subject.trace.layers[-1].routing
    assert routing is not None, "the layer has experts"
    chose = routing.chosen[:, :, scored].flatten(1, 2).transpose(1, 2).float()
    load = chose @ member / size[:, None]  # (M, E, O)
    knocked = torch.stack([right({f"{last}.gates": _closing(e)}) for e in range(ffn.experts)], 1)
    every = [None, *range(len(kinds))]
    accuracy = right()[:, None]
    each = tidy(
        {"expert": range(ffn.experts), "operation": every},
        load=load,
        accuracy=accuracy.expand_as(knocked),
        knocked_out=knocked,
    )
    chosen = {"": first(routing)[:, :, scored]}
    if ffn.scores:
        name = f"{last}.ffn.router"
        initial = torch.stack([architecture.initialise(seed)[name] for seed in subject.seeds])
        parameters = subject.parameters | {name: initial.to(subject.parameters[name])}
        trace = forward(architecture, parameters, sequences.tokens)
        chosen["initial_"] = first(trace.layers[-1].routing)[:, :, scored]
    told: dict[str, Tensor] = {}
    for prefix, expert in chosen.items():
        told[f"{prefix}nmi"], told[f"{prefix}within"] = information(meetings(expert, needs))
    whole = tidy(
        {"expert": [None], "operation": every},
        accuracy=accuracy,
        **{name: _first_only(value, len(every)) for name, value in told.items()},
    )
    return joined(whole, each)


def _closing(expert: int) -> Any:
    def edit(gates: Tensor) -> Tensor:
        gates = gates.clone()
        gates[..., expert] = 0
        return gates

    return edit


def _first_only(value: Float[Tensor, " M"], rows: int) -> Float[Tensor, "M one rows"]:
    """A number of the whole layer stands in the first of the layer's rows."""
    out = torch.full((len(value), 1, rows), torch.nan, dtype=value.dtype, device=value.device)
    out[:, 0, 0] = value
    return out
