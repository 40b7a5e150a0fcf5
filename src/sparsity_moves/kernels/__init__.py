"""Faster forms of the model's pieces: on a CPU only the open experts, on a GPU fused passes (`kernels.triton`)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparsity_moves.kernels.forms import fitting
from sparsity_moves.kernels.grouped import open_experts
from sparsity_moves.model import REFERENCE, Architecture, Kernels, Trace


def choose(
    architecture: Architecture, device: torch.device, always: Int[Tensor, "M B T"] | None = None
) -> Kernels:
    """The fastest forms that fit the model and the device; on a GPU, made for gradients on the sequences `always`
    alone, where they are given."""
    ffn = architecture.ffn
    if device.type == "cuda":
        if not fitting(architecture):
            return REFERENCE
        from sparsity_moves.kernels import triton

        found = triton.KERNELS if always is None else triton.fixed(always, architecture.task.vocabulary)
        # Trees with a φ each, or with units beside them, are options that no fleet of the book has.
        plain = not ffn.always_on and ffn.nonlinearity != "tree"
        return found if plain else replace(found, feed_forward=None)
    # With half the blocks open or more, sorting costs more than it saves.
    by_hand = ffn.router == "none" or 2 * ffn.top_k < ffn.experts
    return Kernels(feed_forward=open_experts) if by_hand else REFERENCE


def cross_entropy(trace: Trace, targets: Int[Tensor, "M B R"]) -> Float[Tensor, "M B R"]:
    """-log softmax(logits)[target] of every answer."""
    if targets.is_cuda:
        from sparsity_moves.kernels import triton

        return triton.cross_entropy(trace.final, trace.unembed, targets)
    # Classes before answers: a softmax along the last axis of a dozen is slow on a CPU.
    classes_first = trace.logits.flatten(1, 2).transpose(1, 2).contiguous()
    return F.cross_entropy(classes_first, targets.flatten(1), reduction="none").view(targets.shape)


__all__ = ["choose", "cross_entropy", "open_experts"]
