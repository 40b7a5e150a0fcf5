"""The forward pass's pieces for a GPU, in Triton. Each stands beside its reference in `model` and equals it up to
rounding; sums run in a fixed order, so that the same program gives the same bits twice.

Importing this needs Triton, which comes with PyTorch's CUDA builds. With TRITON_INTERPRET=1 it runs on a CPU, slowly.
"""

from sparsity_moves.kernels.triton.attention import attend
from sparsity_moves.kernels.triton.feedforward import feed_forward
from sparsity_moves.kernels.triton.linear import linear
from sparsity_moves.kernels.triton.lookup import lookup
from sparsity_moves.kernels.triton.loss import cross_entropy
from sparsity_moves.kernels.triton.routing import route
from sparsity_moves.model.transformer import Kernels

KERNELS = Kernels(linear=linear, lookup=lookup, attend=attend, route=route, feed_forward=feed_forward)

__all__ = ["KERNELS", "attend", "cross_entropy", "feed_forward", "lookup", "route"]
