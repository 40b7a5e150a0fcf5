"""Dropout whose mask is a function: of a model's seed, the step, the component and the element, and nothing else.

A counter-based generator, a small integer hash, has no state: so a mask does not depend on the fleet, a resumed
training draws what an uninterrupted one would, and a step that is recorded as a CUDA graph draws anew each time it
is replayed, since the step's number is read from the device. The arithmetic is exact in 64-bit integers, so the
mask is the same on every device.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_moves.model.transformer import Edit
from sparsity_moves.training.spec import Spec

FACTOR, ADDEND = 0x45D9F3B, 0x9E3779B9
"""An odd factor small enough that no product of 32 bits by it passes 63; 2^32 over the golden ratio."""
MASK = 2**32 - 1


def scrambled(x: Tensor, key: Tensor | int) -> Tensor:
    """32 bits, in int64, hashed under a key of 32 bits: one bit of either decides about half of the result's."""
    x = (x + key) & MASK
    x ^= x >> 16
    x *= FACTOR
    x += key
    x &= MASK
    x ^= x >> 16
    x *= FACTOR
    x &= MASK
    x ^= x >> 16
    return x


class Dropout:
    """A fleet's masks. `at` says which step they are of."""

    def __init__(self, specs: list[Spec], device: torch.device) -> None:
        spec = specs[0]
        self.rate = spec.dropout
        parts = ("attention", "ffn") if spec.dropout_at == "outputs" else ("hidden",)
        self.names = [f"{layer}.{part}" for layer in range(spec.depth) for part in parts]
        self.seeds = torch.tensor([s.seed & MASK for s in specs], device=device)
        self.step = torch.zeros((), dtype=torch.long, device=device)

    def at(self, step: int) -> None:
        """Turn to a step: `keeps` gives its masks from now on."""
        self.step.fill_(step)

    def keeps(self, component: int, shape: torch.Size) -> Bool[Tensor, "M ..."]:
        """Which elements of a component's output this step leaves alone."""
        key = scrambled(self.step, scrambled(self.seeds, (component + 1) * ADDEND & MASK))
        element = torch.arange(shape[1:].numel(), device=key.device)
        bits = scrambled(element, key[:, None])
        return (bits >= int(self.rate * 2**32)).view(shape)

    def edits(self) -> dict[str, Edit]:
        """What `forward` is to do with the components' outputs."""

        def edit(component: int) -> Edit:
            def dropped(x: Float[Tensor, "M B R W"]) -> Float[Tensor, "M B R W"]:
                return x * self.keeps(component, x.shape).to(x.dtype).mul_(1 / (1 - self.rate))

            return dropped

        return {name: edit(component) for component, name in enumerate(self.names)}
