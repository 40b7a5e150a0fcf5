"""Which of the GPU's forms fit a model: what they can compute, and what of it a step then keeps."""

from __future__ import annotations

from sparsity_moves.model import Architecture, FeedForward


def fitting(architecture: Architecture) -> bool:
    """Whether the GPU's passes take a model's widths; one that they do not is computed by the reference."""
    d_head = architecture.d_head
    return not (d_head & (d_head - 1) or architecture.d_model % 16)


def in_one_pass(ffn: FeedForward, ten_bits: bool) -> bool:
    """Whether an FFN is computed in one pass, so that of its hidden units only the open ones are ever kept.

    Experts where half of them or fewer are open, and a dense layer as one of these where products may round to ten
    bits.
    """
    if ffn.router == "none":
        return ten_bits
    return ffn.router != "tree" and 2 * ffn.top_k <= ffn.experts
