"""What is trained: one Transformer, one FFN equation, one trace."""

from sparsity_moves.model.architecture import Architecture, Counts, FeedForward, Parameters, count, stack
from sparsity_moves.model.routing import Routing
from sparsity_moves.model.transformer import REFERENCE, Kernels, Layer, Trace, components, forward

__all__ = [
    "REFERENCE",
    "Architecture",
    "Counts",
    "FeedForward",
    "Kernels",
    "Layer",
    "Parameters",
    "Routing",
    "Trace",
    "components",
    "count",
    "forward",
    "stack",
]
