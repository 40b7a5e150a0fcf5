"""Which models are measured together: runs at their moments, as many as there is room for.

A measure of a small model is mostly the launching of it, and takes as long for a hundred models as for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from sparsity_moves.measures.tidy import Subject
from sparsity_moves.model import stack
from sparsity_moves.names import MOMENTS, Moment
from sparsity_moves.training import Run, Spec
from sparsity_moves.training.data import evaluation

ROOM = {"cpu": 2**22, "cuda": 2**29}
"""Hidden units, over models, inputs and positions, that are held at once: a few times as many numbers in memory.
On a CPU they are to stay in its caches: four times as many took the histogram's read-outs twice as long."""

Place = tuple[int, Moment]
"""Which run, and at which moment."""


def at_once(spec: Spec, inputs: int, device: torch.device) -> int:
    """Models that are measured together: as many as there is room for."""
    task = spec.task_object
    positions = len(task.read_out) + (spec.depth - 1) * task.length
    return max(1, ROOM[device.type] // (inputs * positions * max(spec.width, 4 * spec.d_model)))


def groups(runs: Sequence[Run], device: torch.device) -> Iterator[list[Place]]:
    """All moments of all runs, one moment's after another's."""
    places = [(i, moment) for moment in MOMENTS for i, run in enumerate(runs) if moment in run.moments]
    inputs = evaluation([runs[0].spec], torch.device("cpu")).tokens.shape[1]
    size = at_once(runs[0].spec, inputs, device)
    for start in range(0, len(places), size):
        yield places[start : start + size]


def subject(runs: Sequence[Run], places: Sequence[Place], device: torch.device) -> Subject:
    """The models there, stacked, with what each is measured on. `runs` are of one shape."""
    specs = [runs[i].spec for i, _ in places]
    models = stack([runs[i].moments[moment].parameters for i, moment in places])
    parameters = {name: tensor.to(device) for name, tensor in models.items()}
    seeds = [spec.seed for spec in specs]
    return Subject(specs[0].architecture, parameters, evaluation(specs, device), seeds)
