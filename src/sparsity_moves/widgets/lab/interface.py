"""What the trainer is told of a model, in numbers: the arguments of its `setup`, and the order of its tensors."""

from __future__ import annotations

from sparsity_moves.errors import UserError
from sparsity_moves.training import Spec

TASKS = ("add7", "modular_addition", "histogram")
ACTIVATIONS = ("relu", "gelu", "silu", "none")
ROUTERS = ("none", "learned", "frozen", "hash", "tree")
GATES = ("renormalised", "switch")
TENSORS = (
    "embed",
    "position",
    "unembed",
    "0.attention.qkv",
    "0.attention.out",
    "0.attention.out_bias",
    "0.ffn.router",
    "0.ffn.w_in",
    "0.ffn.w_up",
    "0.ffn.b_in",
    "0.ffn.w_out",
    "0.ffn.b_out",
)
"""In the order of the enumeration in `trainer.h`."""


def setup_of(spec: Spec) -> tuple[int, ...]:
    """The arguments of `setup`, all but the last, the capacity.

    Raises `UserError` where the spec asks for what the trainer does not have.
    """
    if spec.depth != 1 or spec.norm != "none" or spec.dropout or spec.router not in ROUTERS:
        raise UserError("the lab trains one layer without norm or dropout, routed by score, symbol or tree")
    if spec.always_on or spec.nonlinearity == "tree":
        raise UserError(
            "the lab's trees have no units that are always on, and φ at every node or after the sum"
        )
    if spec.task == "add7" and (spec.digits, spec.addend) != (3, 7):
        raise UserError("the lab adds 7 to three digits")
    sizes = {
        "add7": (0, 0),
        "modular_addition": (spec.modulus or 0, round(100 * (spec.train_fraction or 0))),
        "histogram": (spec.alphabet or 0, spec.symbols or 0),
    }[spec.task]
    return (
        TASKS.index(spec.task),
        *sizes,
        spec.d_model,
        spec.heads,
        spec.width,
        spec.experts,
        spec.top_k,
        ROUTERS.index(spec.router),
        GATES.index(spec.gate),
        int(spec.gated),
        ACTIVATIONS.index(spec.activation),
        spec.tree_depth,
        int(spec.nonlinearity == "sum"),
    )
