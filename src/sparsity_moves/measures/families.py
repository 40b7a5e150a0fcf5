"""All families of measures beside the numbers of runs.parquet: one tidy table each, keyed by run and moment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from sparsity_moves.kernels.precision import beside
from sparsity_moves.measures.ablation_parts import ablation_parts
from sparsity_moves.measures.attention import attention_patterns
from sparsity_moves.measures.attribution_parts import attribution_parts
from sparsity_moves.measures.bilinear import bilinear
from sparsity_moves.measures.fourier import fourier, neuron_rows
from sparsity_moves.measures.patching import patching
from sparsity_moves.measures.probes import probes
from sparsity_moves.measures.progress import progress
from sparsity_moves.measures.routing_parts import routing_parts
from sparsity_moves.measures.strategy import strategy
from sparsity_moves.measures.tidy import Columns, Subject, joined
from sparsity_moves.measures.together import Place, groups, subject
from sparsity_moves.names import Family
from sparsity_moves.training import Run, Spec

MEASURES: dict[Family, Callable[[Subject], list[Columns]]] = {
    "ablation": ablation_parts,
    "attention": attention_patterns,
    "attribution": attribution_parts,
    "patching": patching,
    "probes": probes,
    "routing": routing_parts,
    "fourier": lambda s: joined(fourier(s), bilinear(s)) if s.architecture.ffn.gated else fourier(s),
    "neurons": neuron_rows,
    "progress": progress,
    "strategy": strategy,
}


def applies(family: Family, spec: Spec) -> bool:
    """Whether a run has what a family measures."""
    task = {"patching": "add7", "probes": "add7", "strategy": "histogram"}
    task |= dict.fromkeys(("fourier", "neurons", "progress"), "modular_addition")
    return (family not in task or spec.task == task[family]) and (family != "routing" or spec.experts > 1)


def measure_families(
    runs: Sequence[Run], wanted: Sequence[Collection[Family]], device: torch.device | str = "cpu"
) -> list[dict[Family, Columns]]:
    """Each run's rows of the families that are wanted of it, with a column `moment`.

    Args:
        runs: of one shape.
        wanted: one collection a run; those that do not apply are left out.
        device: where.

    On a CPU a run's rows are the same bits whatever other runs are measured with it.
    """
    device = torch.device(device)
    parts: list[dict[Family, list[Columns]]] = [{} for _ in runs]
    for places in groups(runs, device):
        made: dict[tuple[Place, ...], Subject] = {}
        for family, measure in MEASURES.items():
            own = tuple(
                (i, moment) for i, moment in places if family in wanted[i] and applies(family, runs[i].spec)
            )
            if not own:
                continue
            if own not in made:
                made[own] = subject(runs, own, device)
            with beside("fp32"):  # measures add up what they take apart
                found = measure(made[own])
            for (i, moment), rows in zip(own, found, strict=True):
                size = len(next(iter(rows.values())))
                parts[i].setdefault(family, []).append({"moment": [moment] * size, **rows})
    return [
        {family: joined(*([table] for table in tables))[0] for family, tables in of.items()} for of in parts
    ]
