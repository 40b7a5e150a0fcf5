"""Every measure of every moment of a fleet, as tidy rows: the columns of runs.parquet that training decides."""

from __future__ import annotations

from typing import Any

import torch

from sparsity_moves.measures.ablation import component_ablation
from sparsity_moves.measures.attribution import attention_share
from sparsity_moves.measures.routing import router_nmi
from sparsity_moves.model import count, stack
from sparsity_moves.names import MOMENTS
from sparsity_moves.training import Run, accuracy, correct, exact_match, held_out_accuracy
from sparsity_moves.training.data import evaluation
from sparsity_moves.training.precision import products


def measure(runs: list[Run], device: torch.device | str = "cpu") -> list[list[dict[str, Any]]]:
    """One list of rows a run, one row a moment, in the order of `MOMENTS`; in fp32 whatever training used."""
    with products("fp32"):
        return _measure(runs, torch.device(device))


def _measure(runs: list[Run], device: torch.device) -> list[list[dict[str, Any]]]:
    rows: list[dict[str, dict[str, Any]]] = [{} for _ in runs]
    for moment in MOMENTS:
        there = [i for i, run in enumerate(runs) if moment in run.moments]
        if not there:
            continue
        specs = [runs[i].spec for i in there]
        architecture = specs[0].architecture
        parameters = {
            n: t.to(device) for n, t in stack([runs[i].moments[moment].parameters for i in there]).items()
        }
        sequences = evaluation(specs, device)
        right = correct(architecture, parameters, sequences)
        test: list[float | None] = [None] * len(there)
        if sequences.held_out is not None:
            test = list(held_out_accuracy(right, sequences.held_out).tolist())
        elif specs[0].has_test:  # evaluation sequences are drawn apart from any pool
            test = list(accuracy(right).tolist())
        columns = {
            "accuracy": accuracy(right).tolist(),
            "exact_match": exact_match(right).tolist(),
            "test_accuracy": test,
            **{
                name: v.tolist()
                for name, v in component_ablation(
                    architecture, parameters, sequences, [s.seed for s in specs]
                ).items()
            },
            "attention_share": attention_share(architecture, parameters, sequences),
            "router_nmi": router_nmi(architecture, parameters, sequences),
        }
        sizes = count(architecture)
        for place, i in enumerate(there):
            rows[i][moment] = {
                "moment": moment,
                "step": runs[i].moments[moment].step,
                **{name: values[place] for name, values in columns.items()},
                "parameters": sizes.parameters,
                "active_parameters": sizes.active_parameters,
                "flops_per_token": sizes.flops_per_token,
            }
    return [list(row.values()) for row in rows]
