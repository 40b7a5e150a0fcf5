"""Direct logit attribution, part by part: who writes how much of the answer into the residual stream?

The final residual stream is a sum: token and position embedding, each head's output, attention's bias, and each
expert's output (a dense layer is one expert, and so are trees). The unembedding is linear, so the logits are the sum
of what it makes of each part; with a norm at the output, at the scale that the whole stream is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.measures.tidy import Columns, Subject, tidy
from sparsity_moves.model.routing import pick


class Part(NamedTuple):
    """What writes: the name, the layer and which of its kind; None where there is but one."""

    name: str
    layer: int | None = None
    number: int | None = None


def parts(subject: Subject) -> Iterator[tuple[Part, Float[Tensor, "M N R D"]]]:
    """What each part adds to the residual stream at the read-outs; together they are the final residual stream."""
    architecture, p, trace = subject.architecture, subject.parameters, subject.trace
    task, read = architecture.task, list(architecture.task.read_out)
    tokens = subject.sequences.tokens[:, :, read]
    models = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    shape = trace.embedding.shape
    yield Part("token"), p["embed"][models, tokens]
    yield Part("position"), p["position"][:, None, read].expand(shape)
    held = tuple(range(task.length))
    for number, layer in enumerate(trace.layers):
        there = (task.read_out, task.read_out if number == architecture.depth - 1 else held)
        heads = pick(layer.heads, *there)
        out = p[f"{number}.attention.out"].unflatten(1, (architecture.heads, architecture.d_head))
        for h in range(architecture.heads):
            mixed = heads[:, :, :, h].flatten(1, 2)
            yield Part("head", number, h), (mixed @ out[:, h]).view(shape)
        yield Part("attention_bias", number), p[f"{number}.attention.out_bias"][:, None, None].expand(shape)
        ffn, w_out = architecture.ffn, p[f"{number}.ffn.w_out"]
        if ffn.trees:  # whose nonlinearity may come after the sum over nodes
            yield Part("expert", number, 0), pick(layer.ffn, *there)
            continue
        assert layer.hidden is not None, "a trace of the reference has hidden units"
        hidden = pick(layer.hidden, *there).flatten(1, 2)
        gates = None if layer.routing is None else pick(layer.routing.gates, *there).flatten(1, 2)
        for e in range(ffn.experts):
            units = slice(e * ffn.expert_width, (e + 1) * ffn.expert_width)
            written = hidden[..., units] @ w_out[:, units]
            if ffn.bias:
                written = written + p[f"{number}.ffn.b_out"][:, None, e]
            if gates is not None:
                written = written * gates[..., e, None]
            yield Part("expert", number, e), written.view(shape)


def wholes(subject: Subject) -> Iterator[tuple[Part, Float[Tensor, "M N R D"]]]:
    """Sums of parts: the embedding, attention and the FFN of each layer, and the whole residual stream."""
    architecture, trace = subject.architecture, subject.trace
    held = tuple(range(architecture.task.length))
    yield Part("embedding"), trace.embedding
    for number, layer in enumerate(trace.layers):
        last = number == architecture.depth - 1
        there = (architecture.task.read_out, architecture.task.read_out if last else held)
        yield Part("attention", number), pick(layer.attention, *there)
        yield Part("ffn", number), pick(layer.ffn, *there)
    yield Part("residual"), trace.residual


@torch.no_grad()
def attribution_parts(subject: Subject) -> list[Columns]:
    """Every part's, and every whole's, share in the correct logit and in the residual stream.

    Columns: `part` (token | position | head | attention_bias | expert, which sum to the rest: embedding | attention |
    ffn, which sum to residual), `layer`, `index` (of head or expert), `position` (read-out; None is all of the
    histogram's, which are alike), and means over inputs: `logit` (added to the correct logit), `magnitude` (its
    absolute value: the published share is attention's over attention's plus the FFN's), `margin` (added to the
    correct logit above the mean of all), `norm` (Euclidean, of what is written into the residual stream).
    """
    task = subject.architecture.task
    scored = list(task.scored)
    targets = subject.sequences.targets
    models = torch.arange(len(targets), device=targets.device)[:, None, None]
    by_class = subject.trace.unembed.transpose(1, 2)  # (M, C, D)
    correct = by_class[models, targets]  # (M, N, R, D)
    above = correct - by_class.mean(1)[:, None, None]
    if "norm" in subject.parameters:
        residual = subject.trace.residual
        epsilon = torch.finfo(residual.dtype).eps
        scale = (residual.square().mean(-1, keepdim=True) + epsilon).rsqrt()
        scale = scale * subject.parameters["norm"][:, None, None]
        correct, above = correct * scale, above * scale
    alike = task.name == "histogram"
    labels: list[Part] = []
    rows: dict[str, list[Tensor]] = {"logit": [], "magnitude": [], "margin": [], "norm": []}

    def mean(x: Float[Tensor, "M N R"]) -> Float[Tensor, "M P"]:
        x = x[:, :, scored].double()
        return x.mean((1, 2))[:, None] if alike else x.mean(1)

    for source in (parts(subject), wholes(subject)):
        for part, written in source:
            labels.append(part)
            logit = (written * correct).sum(-1)
            rows["logit"].append(mean(logit))
            rows["magnitude"].append(mean(logit.abs()))
            rows["margin"].append(mean((written * above).sum(-1)))
            rows["norm"].append(mean(torch.linalg.vector_norm(written, dim=-1)))
    axes: dict[Any, Any] = {
        ("part", "layer", "index"): [tuple(part) for part in labels],
        "position": [None] if alike else scored,
    }
    return tidy(axes, **{name: torch.stack(values, 1) for name, values in rows.items()})
