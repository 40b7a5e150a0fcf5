"""Which parameters are kept: all where models are small and few, at full scale those that the book opens."""

from __future__ import annotations

from sparsity_moves.names import MOMENTS, Moment
from sparsity_moves.studies.arms import arm
from sparsity_moves.studies.published import PAPER_MOMENT
from sparsity_moves.training import Spec
from sparsity_moves.training.profiles import SEEDS

OPENED = ("dense", "narrow", "glu", "moe", "moe_frozen", "moe_switch", "moe_glu")
"""Arms whose insides the chapters look at, in one model each: that of the first seed."""


def kept(spec: Spec) -> tuple[Moment, ...]:
    """The moments at which a run's parameters are stored, unless others are asked for.

    At full scale: the checkpoint that the paper looks at, and add-7's last step, since there the two differ.
    """
    if spec.profile != "paper":
        return MOMENTS
    first = SEEDS[0]
    if spec.seed != first or all(spec != arm(name, spec.profile, spec.task, first) for name in OPENED):
        return ()
    moment = PAPER_MOMENT[spec.task]
    return (moment, "final") if spec.task == "add7" else (moment,)
