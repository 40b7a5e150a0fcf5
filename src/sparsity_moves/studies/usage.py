"""How trees are used as they learn: φ at every node against φ after the sum, at several seeds, from the first step.

Emergent auto-pruning (Sedghi et al. 2026) is a tree that loses use of its branches. Which φ there is matters to the
explanation given (an asymmetric one treats the two branches unequally), so there are three, and none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from typing import Any

from sparsity_moves.names import Profile, TaskName
from sparsity_moves.store.looks import Looks
from sparsity_moves.studies.arms import arm
from sparsity_moves.studies.study import seeds
from sparsity_moves.training import Spec

HEIGHT = 5
FORMS = {"tree": "at every node", "tree_balanced": "after the sum"}
"""The arm by where its φ stands."""
ACTIVATIONS = ("gelu", "relu")
EVERY = 100
Group = tuple[dict[str, Any], list[Spec]]


def groups(
    profile: Profile = "laptop", tasks: tuple[TaskName, ...] = ("histogram",), number_of_seeds: int = 6
) -> list[Group]:
    """What is run, a fleet a form and φ: what its runs have in common, and the specs."""
    return [
        (
            {"task": task, "arm": name, "activation": phi, "height": HEIGHT, "profile": profile},
            [
                arm(name, profile, task, seed, tree_depth=HEIGHT, activation=phi)
                for seed in seeds(number_of_seeds)
            ],
        )
        for task, phi, name in product(tasks, ACTIVATIONS, FORMS)
    ]


def settings(common: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """Of one run."""
    return {**common, "seed": spec.seed, "spec_id": spec.spec_id}


def run(
    wanted: list[Group],
    where: Looks,
    device: str = "cpu",
    tell: Callable[[float, str], None] = lambda share, words: None,
) -> int:
    """Train and look at what is not there yet; gives how many models that were. `tell` hears the share done."""
    from sparsity_moves.measures.tree import over_training

    trained = 0
    for place, (common, specs) in enumerate(wanted):
        missing = [spec for spec in specs if where.missing([settings(common, spec)])]
        if not missing:
            continue
        words = f"{len(missing)} models of {common['task']}: {common['arm']}, {common['activation']}"
        tell(place / len(wanted), words)
        started = time.perf_counter()
        rows = over_training(missing, device, EVERY)
        own = [
            (
                settings(common, spec),
                [
                    {k: v for k, v in row.items() if k not in ("spec_id", "seed")}
                    for row in rows
                    if row["spec_id"] == spec.spec_id
                ],
            )
            for spec in missing
        ]
        seconds = (time.perf_counter() - started) / len(missing)
        where.add(own, device=device, seconds=round(seconds, 2))
        trained += len(missing)
    return trained
