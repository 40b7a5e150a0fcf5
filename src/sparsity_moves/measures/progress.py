"""Restricted and excluded loss: how much of a modular adder's answer is in a few frequencies of a + b?

The logits over all pairs (a, b) are a sum of two-dimensional waves. A network that adds by trigonometric identities
needs a few key frequencies only (Nanda et al. 2023): restricted to them it loses nothing, without them it cannot
answer. While memorising it is the other way round.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_moves.measures.fourier import averaged, by_sum, coefficients, modulus, shares, waves
from sparsity_moves.measures.tidy import Columns, Subject, tidy

ENOUGH = 0.99
"""Key frequencies are the strongest that together explain this much of what a + b explains of the logits."""


def key_frequencies(share: Float[Tensor, "M F"]) -> Bool[Tensor, "M F"]:
    """The fewest frequencies that reach `ENOUGH`."""
    ordered, place = share.sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(1) - ordered
    wanted = before < ENOUGH * share.sum(1, keepdim=True)
    return torch.zeros_like(wanted).scatter(1, place, wanted)


def kept(signal: Float[Tensor, "M p C"], keys: Bool[Tensor, "M F"]) -> Float[Tensor, "M p C"]:
    """A signal's waves at the key frequencies alone."""
    basis = waves(signal.shape[1], signal.device)  # (p, F, 2)
    size = basis.square().sum(0).clamp(min=1e-9)
    chosen = coefficients(signal) / size[..., None] * keys[:, :, None, None]
    return basis.flatten(1).expand(len(signal), -1, -1) @ chosen.flatten(1, 2)


@torch.no_grad()
def progress(subject: Subject) -> list[Columns]:
    """The progress measures of Nanda et al. (2023), section 5.

    Columns: `split` (train | test), `loss` (cross-entropy), `restricted_loss` (logits: their mean over all pairs, and
    the waves of a + b and a - b at the key frequencies), `excluded_loss` (logits less the waves of a + b at the key
    frequencies), and of the model `key_frequencies` (how many), `sum_share` and `difference_share` (of the logits'
    variance over pairs, by functions of a + b and of a - b).
    """
    p = modulus(subject)
    logits = subject.trace.logits[:, :, 0]  # (M, pairs, C)
    device = logits.device
    of_sum, of_difference = shares(logits, p), shares(logits, p, -1)
    keys = key_frequencies(of_sum)
    sums, differences = (averaged(logits, by_sum(p, device, sign)) for sign in (1, -1))
    pair = torch.arange(p * p, device=device)
    a, b = pair // p, pair % p
    wave = kept(sums, keys).float()[:, (a + b) % p]
    other = kept(differences, keys).float()[:, (a - b) % p]
    constant = logits.double().mean(1, keepdim=True).float()
    held_out = subject.sequences.held_out
    assert held_out is not None, "modular addition holds pairs out"
    columns = {
        "loss": logits,
        "restricted_loss": constant + wave + other,
        "excluded_loss": logits - wave,
    }
    found = {name: _loss(x, subject.sequences.targets[:, :, 0], held_out) for name, x in columns.items()}
    for name, value in (
        ("key_frequencies", keys.sum(1)),
        ("sum_share", of_sum.sum(1)),
        ("difference_share", of_difference.sum(1)),
    ):
        found[name] = value[:, None].expand(-1, 2)
    axes: dict[Any, Any] = {"split": ["train", "test"]}
    return tidy(axes, **found)


def _loss(
    logits: Float[Tensor, "M pairs C"], targets: Tensor, held_out: Bool[Tensor, "M pairs"]
) -> Float[Tensor, "M two"]:
    """Cross-entropy on the pairs trained on, and on the others."""
    each = (
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        .view(held_out.shape)
        .double()
    )
    return torch.stack([(each * on).sum(1) / on.sum(1) for on in (~held_out, held_out)], 1)
