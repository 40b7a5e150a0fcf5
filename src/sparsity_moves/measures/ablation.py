"""Component ablation: what accuracy is left when one component's output is taken away?

no-FFN accuracy is the headline: the more attention computes, the higher it is. Zeroing is the paper's way, but
it puts the rest of the model off its distribution; the mean over inputs and another input's output (resample)
are the two ways that do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.model import Architecture, Parameters, Trace, forward
from sparsity_moves.model.transformer import Edit
from sparsity_moves.tasks import Sequences, generator
from sparsity_moves.training import accuracy, correct, no

Component = Literal["attention", "ffn"]
Replacement = Literal["zero", "mean", "resample"]


def replacement(
    component: Component, how: Replacement, architecture: Architecture, trace: Trace, seeds: list[int]
) -> Mapping[str, Edit]:
    """Edits that take the component away in every layer.

    `mean` puts its mean over all inputs in its place, at each position and layer of the whole model's run;
    `resample` its output for another input, by one random permutation a model.
    """
    if how == "zero":
        return no(component, architecture.depth)
    edits: dict[str, Edit] = {}
    for number, layer in enumerate(trace.layers):
        output = getattr(layer, component)  # (M, N, R, D)
        if how == "mean":
            instead = output.mean(1, keepdim=True).expand_as(output)
        else:
            size = output.shape[1]
            order = torch.stack([torch.randperm(size, generator=generator(s, "resample")) for s in seeds])
            order = order.to(output.device)
            instead = output[torch.arange(len(output), device=output.device)[:, None], order]
        edits[f"{number}.{component}"] = partial(_constant, instead)
    return edits


def _constant(instead: Tensor, _: Tensor) -> Tensor:
    return instead


@torch.no_grad()
def component_ablation(
    architecture: Architecture, parameters: Parameters, sequences: Sequences, seeds: list[int]
) -> dict[str, Float[Tensor, " M"]]:
    """Per-token accuracy of every model without its attention or its FFN, three ways each.

    add-7: teacher-forced, mean over the output digits, all inputs. Modular addition: all pairs. Histogram: the
    evaluation sequences (Smithline & Mascioli 2026, component ablation).
    """
    trace = forward(architecture, parameters, sequences.tokens)
    ways: tuple[tuple[Replacement, str], ...] = (("zero", "no"), ("mean", "mean"), ("resample", "resample"))
    components: tuple[Component, ...] = ("ffn", "attention")
    columns = {}
    for how, prefix in ways:
        for component in components:
            edits = replacement(component, how, architecture, trace, seeds)
            columns[f"{prefix}_{component}_accuracy"] = accuracy(
                correct(architecture, parameters, sequences, edits)
            )
    return columns
