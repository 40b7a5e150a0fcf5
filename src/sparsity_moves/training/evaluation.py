"""Right or wrong, for every model, sequence and read-out: what all accuracies are means of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsity_moves.model import REFERENCE, Architecture, Kernels, Parameters, forward
from sparsity_moves.model.transformer import Edit
from sparsity_moves.tasks import Sequences
from sparsity_moves.training.spec import Spec

CHUNK = 4096
"""Sequences a forward pass, to bound the memory of large evaluations."""


@torch.no_grad()
def correct(
    architecture: Architecture,
    parameters: Parameters,
    sequences: Sequences,
    edits: Mapping[str, Edit] | None = None,
    kernels: Kernels = REFERENCE,
) -> Bool[Tensor, "M N R"]:
    """Whether each answer of a fleet (`stacked`) is right, teacher-forced; only the read-outs that count."""
    tokens, targets = sequences.tokens, sequences.targets
    scored = list(architecture.task.scored)
    chunk = CHUNK if edits is None else tokens.shape[1]  # an edit may speak of all sequences
    right = [
        forward(
            architecture, parameters, tokens[:, i : i + chunk], edits=edits, kernels=kernels
        ).logits.argmax(-1)
        == targets[:, i : i + chunk]
        for i in range(0, tokens.shape[1], chunk)
    ]
    return torch.cat(right, dim=1)[:, :, scored]


def accuracy(right: Bool[Tensor, "M N R"]) -> Float[Tensor, " M"]:
    """Mean over sequences and read-outs: the per-token accuracy of the paper."""
    return right.double().mean((1, 2))


def exact_match(right: Bool[Tensor, "M N R"]) -> Float[Tensor, " M"]:
    """Share of sequences with every answer right."""
    return right.all(-1).double().mean(1)


def held_out_accuracy(right: Bool[Tensor, "M N R"], held_out: Bool[Tensor, "M N"]) -> Float[Tensor, " M"]:
    """Mean over the sequences that training never saw."""
    wanted = held_out[:, :, None]
    return (right & wanted).double().sum((1, 2)) / (wanted.sum((1, 2)) * right.shape[2])


def no(component: str, depth: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Edits that zero one component (`attention` or `ffn`) in every layer."""
    return {f"{layer}.{component}": torch.zeros_like for layer in range(depth)}


@torch.no_grad()
def look(
    spec: Spec,
    parameters: Parameters,
    sequences: Sequences,
    picks: Int[Tensor, "M probe"] | None = None,
    kernels: Kernels = REFERENCE,
) -> tuple[dict[str, Float[Tensor, " M"]], Float[Tensor, " M"]]:
    """The curve's accuracies now, and the score by which the first best checkpoint is judged.

    `sequences` are stacked over the models; `picks` are those that the score is judged on, all unless given.
    """
    architecture = spec.architecture

    def right(edits: dict[str, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        return correct(architecture, parameters, sequences, edits, kernels=kernels)

    whole = right()
    seen = {
        "accuracy": accuracy(whole),
        "no_ffn_accuracy": accuracy(right(no("ffn", architecture.depth))),
        "no_attention_accuracy": accuracy(right(no("attention", architecture.depth))),
    }
    if sequences.held_out is not None:
        score = seen["test_accuracy"] = held_out_accuracy(whole, sequences.held_out)
    elif spec.has_test:  # evaluation sequences are drawn apart from any pool
        score = seen["test_accuracy"] = seen["accuracy"]
    elif picks is not None:
        score = whole.all(-1).gather(1, picks).double().mean(1)
    else:
        score = exact_match(whole)
    return seen, score
