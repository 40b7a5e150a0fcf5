"""Linear probes: can a component's output be read for the operation, and more than its position tells?

One multinomial logistic regression a model and place to read, all trained at once, by the authors' recipe or by
that of their code; they differ, so both are given. A predictor that knows the position alone is right in 90.6 % of
add-7's answers, so a probe says something where it is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.measures.tidy import Columns, Subject, joined, tidy
from sparsity_moves.tasks import generator


@dataclass(frozen=True)
class Recipe:
    """How a probe is trained: with Adam, from zero, without weight decay."""

    name: str
    rate: float
    steps: int
    batch: int
    """Tokens a step, drawn with replacement; 0 is all of them, every step."""
    standardise: bool
    """Whether features are brought to mean 0 and variance 1 over the training tokens first."""
    split: float
    """Share of the inputs to train on; 1 measures on the same inputs."""
    anneal: bool = False
    """Whether the rate falls linearly to zero."""


PAPER = Recipe("paper", 1e-3, 500, 128, False, 0.7)
"""Smithline & Mascioli 2026; whether they standardise is not said."""
CODE = Recipe("code", 1e-2, 500, 0, True, 1.0)
"""Their public code."""


def fit(
    features: Float[Tensor, "P N D"],
    labels: Int[Tensor, "P N"],
    classes: int,
    recipe: Recipe,
    batches: Int[Tensor, "steps P B"] | None = None,
) -> tuple[Float[Tensor, "P D C"], Float[Tensor, "P 1 C"]]:
    """Weights and biases of P logistic regressions, each on its own tokens.

    The gradient of the mean cross-entropy is written out (probabilities minus one-hot labels, times features), and
    so is Adam (Kingma & Ba 2015), in steps that each round alike in any shape: a probe does not depend on the
    others beside it. `batches` are the tokens of every step; all of them unless given.
    """
    count, width = len(features), features.shape[2]

    # Weights and biases lie in one buffer, and so do their gradients: Adam is then one operation for both.
    def parts(buffer: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = buffer.split([count * classes * width, count * classes])
        return weight.view(count, classes, width), bias.view(count, classes, 1)

    value, gradient, first, second = features.new_zeros(4, count * classes * (width + 1))
    (weight, bias), (by_weight, by_bias) = parts(value), parts(gradient)
    # Classes come before tokens: a softmax along the last axis of a few is slow on a CPU.
    hot = torch.nn.functional.one_hot(labels, classes).to(features.dtype)
    probe = torch.arange(len(features), device=features.device)[:, None]
    x, y = features, hot.transpose(1, 2).contiguous()
    for step in range(1, recipe.steps + 1):
        if batches is not None:
            index = batches[step - 1]
            x, y = features[probe, index], hot[probe, index].transpose(1, 2)
        wrong = ((weight @ x.transpose(1, 2) + bias).softmax(1) - y) / x.shape[1]  # (P, C, B)
        torch.bmm(wrong, x, out=by_weight)
        torch.sum(wrong, 2, keepdim=True, out=by_bias)
        rate = recipe.rate * ((1 - (step - 1) / recipe.steps) if recipe.anneal else 1)
        first.mul_(0.9).add_(gradient * 0.1)
        second.mul_(0.999).add_(gradient * gradient * 0.001)
        size = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
        value.sub_(first / (1 - 0.9**step) * rate / size)
    return weight.transpose(1, 2), bias.transpose(1, 2)


def split(
    inputs: int, share: float, seeds: list[int]
) -> tuple[Int[Tensor, "M train"], Int[Tensor, "M test"]]:
    """Which inputs each model's probes are trained and measured on, by its seed."""
    order = torch.stack([torch.randperm(inputs, generator=generator(seed, "probe split")) for seed in seeds])
    size = round(inputs * share)
    return order[:, :size], order[:, size:] if size < inputs else order


def read(
    places: dict[str, Float[Tensor, "M N R D"]],
    labels: Int[Tensor, "M N R"],
    classes: int,
    recipe: Recipe,
    seeds: list[int],
) -> dict[str, Float[Tensor, "M R"]]:
    """The accuracy of a probe at each place, and of one that knows the read-out alone, at every read-out.

    One probe reads all read-outs of a place. The same inputs and batches serve all places of a model; the probe
    that knows the position alone (`position`) answers what is most frequent there among its training inputs.
    """
    models, inputs, reads = labels.shape
    device = labels.device
    train, test = (index.to(device) for index in split(inputs, recipe.split, seeds))
    model = torch.arange(models, device=device)[:, None]

    def tokens(x: Tensor, index: Tensor) -> Tensor:
        return x[model, index].flatten(1, 2)

    known = tokens(labels, train)
    said = torch.nn.functional.one_hot(labels[model, train], classes).sum(1).argmax(-1)  # (M, R)
    found = {"position": (said[:, None] == labels[model, test]).double().mean(1)}
    batches = None
    if recipe.batch:
        sources = [generator(seed, "probe batches") for seed in seeds]
        shape = (recipe.steps, recipe.batch)
        batches = torch.stack([torch.randint(known.shape[1], shape, generator=s) for s in sources], 1)
        batches = batches.to(device).repeat(1, len(places), 1)
    x, unseen = (
        torch.cat([tokens(features, index) for features in places.values()]) for index in (train, test)
    )
    if recipe.standardise:
        mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True, correction=0)
        deviation = deviation.clamp(min=1e-8)
        x, unseen = (x - mean) / deviation, (unseen - mean) / deviation
    weight, bias = fit(
        x, known.repeat(len(places), 1), classes, recipe, batches
    )  # place by place, all models of it
    right = (unseen @ weight + bias).argmax(-1) == tokens(labels, test).repeat(len(places), 1)
    accuracy = right.unflatten(1, (-1, reads)).double().mean(1).unflatten(0, (len(places), models))
    return found | dict(zip(places, accuracy, strict=True))


@torch.no_grad()
def probes(subject: Subject, recipes: tuple[Recipe, ...] = (PAPER, CODE)) -> list[Columns]:
    """How well the operation is read off each component's output.

    Columns: `recipe` (paper | code), `site` (position: no more than the read-out is known | attention | ffn, each of
    the last layer; by the paper's recipe embedding | residual, the final stream, too), `position` (read-out; None is
    all scored), `accuracy` on inputs that the probe was not trained on (`code` has no others).

    Source: Smithline & Mascioli 2026, linear probes.
    """
    task, trace = subject.architecture.task, subject.trace
    scored = list(task.scored)
    sites = {"attention": trace.layers[-1].attention, "ffn": trace.layers[-1].ffn}
    more = {"embedding": trace.embedding, "residual": trace.residual}
    labels = subject.sequences.operations[:, :, scored]
    tables = []
    for recipe in recipes:
        read_there = sites | more if recipe == PAPER else sites  # those that the papers read, the others once
        places = {name: x[:, :, scored] for name, x in read_there.items()}
        found = read(places, labels, len(task.operation_names), recipe, subject.seeds)
        each = torch.stack(list(found.values()), 1)  # (M, sites, R)
        accuracy = torch.cat([each.mean(-1, keepdim=True), each], -1)
        axes: dict[Any, Any] = {"recipe": [recipe.name], "site": list(found), "position": [None, *scored]}
        tables.append(tidy(axes, accuracy=accuracy[:, None]))
    return joined(*tables)
