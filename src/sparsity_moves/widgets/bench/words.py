"""What the bench holds, in sentences whose numbers come from the models."""

from __future__ import annotations

from sparsity_moves.figures.prose import listed
from sparsity_moves.figures.words import TASK_NAMES
from sparsity_moves.names import Profile
from sparsity_moves.widgets.bench.models import models


def about(profile: Profile) -> list[str]:
    """Which models there are, who trained them, and on what they are measured; nothing where there are none."""
    offered = models(profile)
    if not offered:
        return []
    tasks = list(dict.fromkeys(model.spec.task for model in offered))
    runs = {model.spec.spec_id: model.spec for model in offered}
    seeds = sorted({str(spec.seed) for spec in runs.values()})
    whose = "published" if offered[0].spec.profile == "paper" else "your own"
    each = [
        f"{TASK_NAMES[task]}: {len(next(m for m in offered if m.spec.task == task).inputs):,}".replace(
            ",", "\u202f"
        )
        for task in tasks
    ]
    return [
        f"On the bench are {len(runs)} {whose} models ({offered[0].spec.profile} profile, seed {listed(seeds)}), "
        f"one a task and arm, at {len(offered)} moments. Inputs that each is measured on: {listed(each)}. "
        "One model is one seed: what holds over many is in the chapters."
    ]
