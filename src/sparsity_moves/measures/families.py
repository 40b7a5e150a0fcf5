"""All families of measures beside the numbers of runs.parquet: one tidy table each, keyed by run and moment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch

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
from sparsity_moves.model import stack
from sparsity_moves.names import MOMENTS, Family
from sparsity_moves.training import Run, Spec
from sparsity_moves.training.data import evaluation
from sparsity_moves.training.precision import products

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

ROOM = {"cpu": 2**25, "cuda": 2**29}
"""Hidden units, over models, inputs and positions, that are held at once: a few times as many numbers in memory."""


def applies(family: Family, spec: Spec) -> bool:
    """Whether a run has what a family measures."""
    task = {"patching": "add7", "probes": "add7", "strategy": "histogram"}
    task |= dict.fromkeys(("fourier", "neurons", "progress"), "modular_addition")
    return (family not in task or spec.task == task[family]) and (family != "routing" or spec.experts > 1)


def at_once(spec: Spec, inputs: int, device: torch.device) -> int:
    """Models that are measured together: as many as there is room for."""
    task = spec.task_object
    positions = len(task.read_out) + (spec.depth - 1) * task.length
    return max(1, ROOM[device.type] // (inputs * positions * max(spec.width, 4 * spec.d_model)))


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
    with products("fp32"):  # measures add up what they take apart
        for moment in MOMENTS:
            there = [i for i, run in enumerate(runs) if moment in run.moments]
            for family_runs, subject_of in _fleets(runs, there, moment, device):
                for family, measure in MEASURES.items():
                    own = [i for i in family_runs if family in wanted[i] and applies(family, runs[i].spec)]
                    if not own:
                        continue
                    for i, rows in zip(own, measure(subject_of(own)), strict=True):
                        size = len(next(iter(rows.values())))
                        parts[i].setdefault(family, []).append({"moment": [moment] * size, **rows})
    return [
        {family: joined(*([table] for table in tables))[0] for family, tables in of.items()} for of in parts
    ]


def _fleets(
    runs: Sequence[Run], there: list[int], moment: str, device: torch.device
) -> Iterator[tuple[list[int], Callable[[list[int]], Subject]]]:
    """As many runs as there is room for, and what makes a subject of some of them (of all, once)."""
    if not there:
        return
    inputs = evaluation([runs[there[0]].spec], torch.device("cpu")).tokens.shape[1]
    step = at_once(runs[there[0]].spec, inputs, device)
    for start in range(0, len(there), step):
        made: dict[tuple[int, ...], Subject] = {}

        def subject(own: list[int], made: dict[tuple[int, ...], Subject] = made) -> Subject:
            if tuple(own) not in made:
                specs = [runs[i].spec for i in own]
                models = stack([runs[i].moments[moment].parameters for i in own])
                parameters = {name: tensor.to(device) for name, tensor in models.items()}
                seeds = [spec.seed for spec in specs]
                made[tuple(own)] = Subject(
                    specs[0].architecture, parameters, evaluation(specs, device), seeds
                )
            return made[tuple(own)]

        yield there[start : start + step], subject
