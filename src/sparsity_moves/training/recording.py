"""A step as a CUDA graph: inputs in fixed places, one launch for some hundred kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsity_moves.kernels.precision import products


class Recording:
    """A step that is recorded once and replayed.

    Args:
        step: what is recorded; it gives the same tensor each time, and changes `state` alone.
        state: what a step changes; recording leaves it as it was.
        tokens, targets: inputs of the shape that every step has.
        precision: fp32 | tf32, of the products.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], Tensor],
        state: list[Tensor],
        tokens: Tensor,
        targets: Tensor,
        precision: str,
    ) -> None:
        with products(precision):
            self._record(step, state, tokens, targets)

    def _record(
        self,
        step: Callable[[Tensor, Tensor], Tensor],
        state: list[Tensor],
        tokens: Tensor,
        targets: Tensor,
    ) -> None:
        self.given: tuple[Tensor, Tensor] | None = None
        self.tokens, self.targets = tokens.clone(), targets.clone()
        before = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries and kernels want to be warm before they are recorded
            for _ in range(2):
                step(self.tokens, self.targets)
        torch.cuda.current_stream().wait_stream(side)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
            self.result = step(self.tokens, self.targets)

    def replay(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """One step on these inputs; the result is overwritten by the next."""
        if self.given is None or self.given[0] is not tokens or self.given[1] is not targets:
            self.tokens.copy_(tokens)
            self.targets.copy_(targets)
            self.given = tokens, targets
        self.graph.replay()
        return self.result
