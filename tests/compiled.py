"""Compiles the GPU's kernels for a Hopper GPU without one, and prints the most shared memory that each asks for.

    python tests/compiled.py          at the widest models of the sweeps
    python tests/compiled.py CHUNK    at one, where a program of the grouped experts takes so many assignments

Launches are compiled and not run: what a kernel would have written is zero.
"""

import json
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sparsity_moves.kernels import triton as kernels
from sparsity_moves.kernels.precision import products
from sparsity_moves.kernels.triton import grouped
from sparsity_moves.model import forward, stack
from sparsity_moves.studies import arm
from sparsity_moves.tasks import stacked

SHAPES = [
    ("moe", "add7", 128),
    ("moe_glu", "histogram", 256),
    ("glu", "histogram", 256),
    ("moe_switch", "modular_addition", 256),
    ("tree", "modular_addition", 128),
]


class Hopper:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def main() -> None:
    asked: dict[str, int] = {}
    run = JITFunction.run

    def only_compiled(kernel, grid):
        def launch(*arguments, **settings):
            made = run(kernel, *arguments, grid=grid, warmup=True, **settings)
            made = made.result() if hasattr(made, "result") else made
            asked[kernel.__name__] = max(asked.get(kernel.__name__, 0), made.metadata.shared)

        return launch

    driver.set_active(Hopper())
    JITFunction.__getitem__ = only_compiled
    torch.empty_like, torch.Tensor.new_empty = torch.zeros_like, torch.Tensor.new_zeros
    if len(sys.argv) > 1:
        fitting = grouped.sizes
        grouped.sizes = lambda *of: fitting(*of)._replace(chunk=int(sys.argv[1]))
    for name, task, d_model in SHAPES[:1] if len(sys.argv) > 1 else SHAPES:
        spec = arm(name, "paper", task, 0, d_model=d_model, width=4 * d_model)
        given = stacked([spec.task_object.evaluation(seed, 16) for seed in range(2)])
        tokens, targets = given.tokens[:, -16:], given.targets[:, -16:]
        start = stack([spec.architecture.initialise(seed) for seed in range(2)])
        p = {key: t.requires_grad_(t.is_floating_point()) for key, t in start.items()}
        positions = tuple(range(spec.task_object.length)) if spec.balance_weight else ()
        # Where the batch is always the same, its kernels come besides.
        for form in (kernels.KERNELS, kernels.fixed(tokens, spec.architecture.task.vocabulary))[
            : 2 - bool(spec.batch)
        ]:
            with products(spec.precision):
                trace = forward(spec.architecture, p, tokens, balance_positions=positions, kernels=form)
                loss = kernels.cross_entropy(trace.final, trace.unembed, targets).mean() + trace.balance.sum()
                loss.backward()
    print(json.dumps(asked))


if __name__ == "__main__":
    main()
