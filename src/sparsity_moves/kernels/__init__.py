"""The same gate as `model.feedforward`, computed only where it is not zero."""

from sparsity_moves.kernels.grouped import open_experts

__all__ = ["open_experts"]
