"""Fourier structure on (a + b) mod p: of neurons, of the FFN's principal components, and of the logits.

A neuron's mean activation over a + b is a signal of p values. Its concentration is the power at its strongest
frequency over all power but the constant's. The authors take the whole transform, in which every frequency stands
twice, as k and p - k, and one of the two: that can reach 0.5 and no more (`full`). With both together (`paired`) it
reaches 1. Both are given, always by these names.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.measures.tidy import Columns, Subject, joined, tidy

SILENT = 1e-12
"""Power of a signal's transform below which the authors' code calls it silent, and its concentration 0."""
TOP = 10
"""Components, singular vectors and frequencies that are kept, the strongest first."""


class Spectrum(NamedTuple):
    """Of signals: what the concentration is made of."""

    full: Float[Tensor, "*signals"]
    paired: Float[Tensor, "*signals"]
    frequency: Int[Tensor, "*signals"]
    """The strongest, from 1 to p/2; 0 where the signal is silent."""
    power: Float[Tensor, "*signals"]
    """All power of the transform but the constant's."""


def modulus(subject: Subject) -> int:
    """p. Raises `UserError` for other tasks than modular addition."""
    task = subject.architecture.task
    if task.name != "modular_addition":
        raise UserError(f"frequencies of a sum mod p are asked of modular_addition, not of {task.name}")
    return task.vocabulary - 1


def waves(p: int, device: torch.device) -> Float[Tensor, "p F two"]:
    """cos and sin of every frequency from 1 to p/2; at p/2, where p is even, the second is zero."""
    angle = torch.arange(p, device=device)[:, None] * torch.arange(1, p // 2 + 1, device=device) % p
    angle = angle.double() * (2 * math.pi / p)
    sin = angle.sin()
    if p % 2 == 0:
        sin[:, -1] = 0
    return torch.stack([angle.cos(), sin], -1)


def coefficients(signal: Float[Tensor, "M p S"]) -> Float[Tensor, "M F two S"]:
    """Real and (negative) imaginary parts of the discrete Fourier transform along p, without the constant."""
    p = signal.shape[1]
    basis = waves(p, signal.device)
    transform = basis.flatten(1).T.expand(len(signal), -1, -1)
    mixed: Tensor = transform @ signal.double()
    return mixed.view(len(signal), -1, 2, signal.shape[2])


def spectrum(signal: Float[Tensor, "M p S"]) -> Spectrum:
    """The concentration of every signal, by both conventions."""
    p = signal.shape[1]
    power = coefficients(signal).square().sum(2)  # (M, F, S)
    twice = torch.full((power.shape[1], 1), 2.0, dtype=power.dtype, device=power.device)
    if p % 2 == 0:
        twice[-1] = 1.0  # its own conjugate
    both = power * twice
    whole = both.sum(1)
    heard = whole >= SILENT
    safe = whole.where(heard, torch.ones_like(whole))
    strongest = power.argmax(1)
    return Spectrum(
        (power.amax(1) / safe) * heard, (both.amax(1) / safe) * heard, (strongest + 1) * heard, whole
    )


def by_sum(p: int, device: torch.device, sign: int = 1) -> Int[Tensor, "p p"]:
    """Row s: the p pairs (as a·p + b) with a + b = s mod p; with sign -1, with a - b = s."""
    a = torch.arange(p, device=device)
    s = a[:, None]
    return a * p + (sign * (s - a)) % p


def averaged(values: Float[Tensor, "M pairs S"], rows: Int[Tensor, "p p"]) -> Float[Tensor, "M p S"]:
    """The mean over each row's pairs, a row at a time so that memory stays small."""
    return torch.stack([values[:, row].double().mean(1) for row in rows], 1)


def alive(subject: Subject, power: Float[Tensor, "M W"]) -> Bool[Tensor, "M W"]:
    """Neurons that are heard in the output: the strength of what they write is at least 1 % of the strongest's.

    Strength is the deviation of the mean activation over a + b, times the length of the neuron's output weights.
    """
    weight = torch.linalg.vector_norm(
        subject.parameters[f"{subject.architecture.depth - 1}.ffn.w_out"].double(), dim=-1
    )
    strength = power.sqrt() * weight
    heard: Tensor = strength >= 0.01 * strength.amax(1, keepdim=True)
    return heard


def mean_and_deviation(x: Float[Tensor, "M W"], among: Bool[Tensor, "M W"]) -> tuple[Tensor, Tensor]:
    """Over the neurons of a kind; deviation with ddof 0, as the authors report."""
    size = among.sum(1)
    mean = (x * among).sum(1) / size
    return mean, (((x - mean[:, None]) * among).square().sum(1) / size).sqrt()


@torch.no_grad()
def neurons(subject: Subject) -> tuple[Spectrum, Bool[Tensor, "M W"]]:
    """Every hidden unit's spectrum, the gate of its expert left out as in the authors' code, and which are alive."""
    rows = by_sum(modulus(subject), subject.trace.residual.device)
    hidden = subject.trace.layers[-1].hidden
    assert hidden is not None, "a trace of the reference has hidden units"
    found = spectrum(averaged(hidden[:, :, 0], rows))
    return found, alive(subject, found.power)


@torch.no_grad()
def fourier(subject: Subject) -> list[Columns]:
    """Concentrations on (a + b) mod p, last layer.

    Columns: `site`, `index`, `full`, `full_sd`, `paired`, `paired_sd`, `frequency`, `share`, `count`.
    Sites: `neurons` (all hidden units; mean and deviation over `count` of them; silent ones count as 0, as in the
    authors' code) · `live_neurons` (those that are heard in the output, see `alive`) · `components` (principal
    components of the FFN's output over all pairs, strongest first; `share` of the variance) · `logits_sum` and
    `logits_difference` (frequencies of a + b, and of a - b, in the logits; `share` of all their variance over pairs).

    Source: Smithline & Mascioli 2026, Fourier concentration; Nanda et al. 2023 for the logits.
    """
    p = modulus(subject)
    found, live = neurons(subject)
    tables = []
    for site, among in (("neurons", torch.ones_like(live)), ("live_neurons", live)):
        full, full_sd = mean_and_deviation(found.full, among)
        paired, paired_sd = mean_and_deviation(found.paired, among)
        columns = {
            "full": full,
            "full_sd": full_sd,
            "paired": paired,
            "paired_sd": paired_sd,
            "count": among.sum(1),
        }
        tables.append(tidy({"site": [site]}, **{n: v[:, None] for n, v in columns.items()}))
    rows = by_sum(p, subject.trace.residual.device)
    tables.append(_components(subject.trace.layers[-1].ffn[:, :, 0], rows))
    logits = subject.trace.logits[:, :, 0]
    for site, sign in (("logits_sum", 1), ("logits_difference", -1)):
        share, frequency = shares(logits, p, sign).sort(dim=1, descending=True, stable=True)
        kept = min(TOP, share.shape[1])
        tables.append(
            tidy(
                {"site": [site], "index": range(kept)},
                frequency=frequency[:, None, :kept] + 1,
                share=share[:, None, :kept],
            )
        )
    return joined(*tables)


def decomposed(
    matrices: Float[Tensor, "M D D"],
) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D D"]]:
    """Eigenvalues, rising, and eigenvectors of symmetric matrices; NaN for a model that diverged."""
    finite = matrices.isfinite().all(2).all(1)[:, None]
    values, vectors = torch.linalg.eigh(matrices.where(finite[..., None], torch.zeros_like(matrices)))
    nothing = torch.full_like(values, torch.nan)
    return values.where(finite, nothing), vectors.where(finite[..., None], nothing[..., None])


def _components(output: Float[Tensor, "M pairs D"], rows: Int[Tensor, "p p"]) -> list[Columns]:
    centred = output.double() - output.double().mean(1, keepdim=True)
    variance, vectors = decomposed(centred.transpose(1, 2) @ centred)
    kept = min(TOP, vectors.shape[2])
    top = vectors.flip(2)[:, :, :kept]
    found = spectrum(averaged(centred, rows) @ top)
    share = variance.flip(1)[:, :kept] / variance.sum(1, keepdim=True)
    axes: dict[Any, Any] = {"site": ["components"], "index": range(kept)}
    values = {"full": found.full, "paired": found.paired, "frequency": found.frequency, "share": share}
    return tidy(axes, **{name: value[:, None] for name, value in values.items()})


def shares(logits: Float[Tensor, "M pairs C"], p: int, sign: int = 1) -> Float[Tensor, "M F"]:
    """Of the logits' variance over all pairs, the share that each frequency of a + b (of a - b) explains."""
    wide = logits.double()
    whole = (wide - wide.mean(1, keepdim=True)).square().sum((1, 2))
    found = coefficients(averaged(logits, by_sum(p, logits.device, sign))).square().sum((2, 3))
    size = waves(p, logits.device)[..., 0].square().sum(0)  # of a wave over p values
    return found * p / size / whole[:, None]


@torch.no_grad()
def neuron_rows(subject: Subject) -> list[Columns]:
    """One row a hidden unit of the last layer: for a few models, since there are hundreds.

    Columns: `neuron`, `expert` (0 where there are none), `full`, `paired`, `frequency`, `power` (see `Spectrum`) and
    `live`.
    """
    found, live = neurons(subject)
    width = subject.architecture.ffn.width // subject.architecture.ffn.experts
    axes: dict[Any, Any] = {("neuron", "expert"): [(n, n // width) for n in range(live.shape[1])]}
    return tidy(axes, **found._asdict(), live=live)
