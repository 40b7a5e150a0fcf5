"""Every measure of every moment of a fleet, as tidy rows: the columns of runs.parquet that training decides."""

from __future__ import annotations

from typing import Any

import torch

from sparsity_moves.kernels.precision import beside
from sparsity_moves.measures.ablation import component_ablation
from sparsity_moves.measures.attribution import attention_share
from sparsity_moves.measures.routing import router_nmi
from sparsity_moves.measures.tidy import Subject
from sparsity_moves.measures.together import groups, subject
from sparsity_moves.model import count
from sparsity_moves.training import Run, Spec, accuracy, correct, exact_match, held_out_accuracy


def measure(runs: list[Run], device: torch.device | str = "cpu") -> list[list[dict[str, Any]]]:
    """One list of rows a run, one row a moment, in the order of `MOMENTS`; in fp32 whatever training used."""
    device = torch.device(device)
    rows: list[list[dict[str, Any]]] = [[] for _ in runs]
    for places in groups(runs, device):
        of = subject(runs, places, device)
        with beside("fp32"):
            columns = _columns(of, [runs[i].spec for i, _ in places])
        sizes = count(of.architecture)
        for place, (i, moment) in enumerate(places):
            rows[i].append(
                {
                    "moment": moment,
                    "step": runs[i].moments[moment].step,
                    **{name: values[place] for name, values in columns.items()},
                    "parameters": sizes.parameters,
                    "active_parameters": sizes.active_parameters,
                    "flops_per_token": sizes.flops_per_token,
                }
            )
    return rows


def _columns(of: Subject, specs: list[Spec]) -> dict[str, list[float] | list[float | None]]:
    """What is measured of each model, by its column's name."""
    models = (of.architecture, of.parameters, of.sequences)
    right = correct(*models)
    test: list[float | None] = [None] * len(specs)
    if of.sequences.held_out is not None:
        test = list(held_out_accuracy(right, of.sequences.held_out).tolist())
    elif specs[0].has_test:  # evaluation sequences are drawn apart from any pool
        test = list(accuracy(right).tolist())
    return {
        "accuracy": accuracy(right).tolist(),
        "exact_match": exact_match(right).tolist(),
        "test_accuracy": test,
        **{name: v.tolist() for name, v in component_ablation(*models, of.seeds).items()},
        "attention_share": attention_share(*models),
        "router_nmi": router_nmi(*models),
    }
