"""What runs cost before they are trained: the floating-point operations of their matrix products."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from sparsity_moves.model import FeedForward, count
from sparsity_moves.training import Spec

BACKWARD = 2
"""Products of the backward pass for one of the forward pass: one gives the input's gradient, one the weight's."""


def training_flops(specs: Iterable[Spec]) -> float:
    """FLOPs to train these runs on a GPU, each once, 2 a multiply-add.

    The masked form computes every block, so an MoE, or a tree, is counted as the dense layer of its whole width.
    A token is a read-out position of the last layer and any position of the layers below, as the forward pass
    computes them. Looking, measuring and elementwise work are not counted, and no kernel reaches the hardware's
    peak: the same number of FLOPs took from 12 TFLOP/s (add-7) to 75 (histogram) on the GPU of the published tables.
    """
    return sum(_of_shape(spec.shape) for spec in set(specs))


@cache
def _of_shape(spec: Spec) -> float:
    architecture, task = spec.architecture, spec.task_object
    ffn = FeedForward(width=architecture.ffn.width, gated=architecture.ffn.gated)
    layer = replace(architecture, ffn=ffn, depth=1)
    whole = count(layer).flops_per_token
    block = whole - 2 * layer.d_model * task.classes
    tokens = len(task.read_out) * whole + (spec.depth - 1) * task.length * block
    sequences = spec.batch or len(task.training_pool(spec.seed, 0, spec.pool))
    return float((1 + BACKWARD) * spec.steps * sequences * tokens)
