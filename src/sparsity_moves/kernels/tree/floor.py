"""What no kernel can beat: the time that a device needs for a tree's operations, or for moving what it touches."""

from __future__ import annotations

from dataclasses import dataclass

from sparsity_moves.model import FeedForward


@dataclass(frozen=True)
class Floor:
    """Work that cannot be left out, for N tokens of width D."""

    flops: int
    """Multiplications and additions, 2 a multiply-add."""
    bytes: int
    """Memory read or written at least once: tokens in and out, and each row of the weights that is touched."""

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Both at once, at the device's peaks."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def floor(
    ffn: FeedForward,
    tokens: int,
    d_model: int,
    element: int,
    *,
    backward: bool = False,
    touched: int | None = None,
) -> Floor:
    """Of one layer's forward pass, or of forward and backward.

    Forward: 4·N·D FLOPs for each open unit (an inner product of D, and D multiply-adds), the tokens in and out, and
    of each unit that any token opens a row of W_in and one of W_out. Backward costs twice the products; it reads
    x, the gradient of y and the rows again, and writes the gradient of x and those of both weights, all of them.

    Args:
        ffn: the layer; a dense one too.
        tokens: N.
        d_model: D.
        element: bytes of a number.
        backward: whether the backward pass is counted too.
        touched: units that some token opens, where that is known; else as many as there can be.
    """
    open_units = ffn.expert_width * ffn.open_blocks
    rows = min(ffn.width, tokens * open_units) if touched is None else touched
    flops = 4 * tokens * d_model * open_units
    moved = 2 * tokens * d_model + 2 * rows * d_model
    if backward:
        flops *= 3
        moved += 3 * tokens * d_model + 2 * rows * d_model + 2 * ffn.width * d_model
    return Floor(flops, moved * element)
