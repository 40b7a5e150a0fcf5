"""The forward pass's pieces for a GPU, in Triton. Each stands beside its reference in `model` and equals it up to
rounding; sums run in a fixed order, so that the same program gives the same bits twice.

Importing this needs Triton, which comes with PyTorch's CUDA builds. With TRITON_INTERPRET=1 it runs on a CPU, slowly.
"""

from dataclasses import replace
from functools import partial

from jaxtyping import Int
from torch import Tensor

from sparsity_moves.kernels.triton import fixed_attention
from sparsity_moves.kernels.triton.attention import VERY_SHORT, attend
from sparsity_moves.kernels.triton.grouped import feed_forward
from sparsity_moves.kernels.triton.linear import linear
from sparsity_moves.kernels.triton.lookup import lookup
from sparsity_moves.kernels.triton.loss import cross_entropy
from sparsity_moves.kernels.triton.routing import route
from sparsity_moves.kernels.triton.segments import segments
from sparsity_moves.model.transformer import Kernels

KERNELS = Kernels(linear=linear, lookup=lookup, attend=attend, route=route, feed_forward=feed_forward)


def fixed(tokens: Int[Tensor, "M B T"], vocabulary: int) -> Kernels:
    """Kernels whose gradients are those of these sequences; made for training on a full batch that never changes."""
    if tokens.shape[-1] > VERY_SHORT:
        return KERNELS
    by = segments(tokens, vocabulary)

    def attend_in_order(
        projected: Tensor,
        index: Tensor | None,
        positions: tuple[int, ...],
        length: int,
        heads: int,
        causal: bool,
    ) -> Tensor:
        if index is None:
            return attend(projected, index, positions, length, heads, causal)
        return fixed_attention.attend(projected, index, by, positions, heads, causal)

    return replace(
        KERNELS,
        lookup=partial(lookup, by=by),
        attend=attend_in_order,
        glance=partial(fixed_attention.glance, by=by),
    )


__all__ = ["KERNELS", "attend", "cross_entropy", "feed_forward", "fixed", "lookup", "route"]
