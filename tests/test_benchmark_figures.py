"""What the chapters say of the benchmarks comes from their tables, losses and gaps too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsity_moves.figures import again, large_trees, peers

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


# --- Five programs ------------------------------------------------------------------------------------------------


def seen(rate: float, **more) -> dict:
    return {
        "model_steps_per_second": rate,
        "times_a": rate / 100,
        "of_floor": rate / 1e4,
        "setup": 1.5,
        **more,
    }


def cell(problem: str, models: int, **rates) -> dict:
    return {"problem": problem, "models": models, "rows": {row: seen(rate) for row, rate in rates.items()}}


@pytest.fixture
def table() -> dict:
    """At 64 models this project leads, at one JAX does; one cell is not there and one program could not run."""
    found = {
        "device": "NVIDIA X1",
        "versions": {"torch": "9.1", "triton": "9.2", "jax": "9.3"},
        "command": "python benchmarks/peers_speed.py",
        "tolerance": {"fp32": 0.002},
        "cells": [
            cell("add7, dense", 64, a=100, b=200, c=3000, d=4000, e=5000),
            cell("add7, dense", 1, a=100, b=200, c=300, d=1000, e=500)
            | {
                "rows": {row: seen(rate) for row, rate in (("a", 100), ("d", 1000), ("e", 500))}
                | {"b": {"reason": "x"}}
            },
        ],
        "left_out": [
            "add7, dense, M = 1: left out, the time was up",
            "add7, moe, M = 1: left out, the time was up",
        ],
        "floor_seconds": {"add7, dense": 1e-4},
    }
    found["cells"][1]["rows"]["b"] = {"reason": "does not fit in memory"}
    return found


def test_who_is_ahead_is_read_from_the_table(table):
    _, many, one, grown, *_ = peers.told(table)
    assert "With 64 models this project takes 50.0 times" in many
    assert "50\u00a0% of the floor's speed" in many
    assert "fastest of the five in 1 of 1" in many
    assert "fastest of the five in 0 of 1" in one
    assert "JAX vmap + jit is 2.00 times as fast" in one
    assert "grow 10.0-fold" in grown
    table["cells"][0]["rows"]["c"]["model_steps_per_second"] = 9000
    assert "torch.func vmap is 1.80 times as fast" in peers.told(table)[1]


def test_what_was_left_out_is_told_unless_it_was_measured_later(table):
    missing = next(line for line in peers.told(table) if line.startswith("**Not measured**"))
    assert "1 model (Addition with carry, MoE)" in missing
    assert "Dense" not in missing
    table["left_out"] = []
    assert not any("Not measured" in line for line in peers.told(table))


def test_losses_that_differ_are_told_and_marked(table):
    assert peers.told(table)[-1].endswith("All agree.")
    table["cells"][0]["rows"]["d"] |= {"agrees": False, "loss_difference": 0.0042}
    assert (
        "**Not so**: JAX vmap + jit (Addition with carry, Dense, 64 models, by up to 0.0042)"
        in peers.told(table)[-1]
    )
    marked = [line for line in peers.peers_table(table).source.splitlines() if "✗<" in line]
    assert len(marked) == 1
    assert "40.0 × (40\u00a0%) ✗" in marked[0]


def test_a_program_that_could_not_run_has_no_number(table):
    one = next(line for line in peers.peers_table(table).source.splitlines() if "| 1 |" in line)
    assert one.split(" | ")[3] == "—"


def test_the_programs_are_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(RESULTS.parent)
    from peers import ROWS

    assert {letter: name for letter, (name, _, _) in peers.PROGRAMS.items()} == {
        r: n for r, (n, _) in ROWS.items()
    }


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_the_committed_tables_are_shown(kind):
    found = peers.benchmarks()[kind]
    assert peers.kind(found) == kind
    rows = peers.rows(found)
    assert peers.growth(found).csv.count("\n") == len(rows) + 1
    assert len(peers.told(found)) >= 4


# --- Past a billion parameters --------------------------------------------------------------------------------------


def large(ffn: str, processes: int, seconds: float, loss: float, device: str = "NVIDIA X1") -> dict:
    steps = [{"loss": 6.0, "seconds": 9.0}, *({"loss": loss, "seconds": seconds} for _ in range(3))]
    found = {
        "ffn": ffn,
        "device": device,
        "processes": processes,
        "parameters": 1_200_000_000,
        "torch": "9.1",
    }
    found |= {"batch": 8, "length": 512, "steps": steps, "peak_bytes": int(2**34 / processes)}
    if processes == 1:
        found["layer_seconds"] = {"attention": 1e-3, "ffn": 2e-3 if ffn == "tree" else 1e-3}
    return found


ONE = [large("dense", 1, 0.1, 4.0), large("tree", 1, 0.15, 4.0)]


def test_trees_are_held_against_dense_on_the_same_devices():
    ran, trees, several = large_trees.told(ONE)
    assert "4 steps of 8 windows of 512 bytes, on 1 × NVIDIA X1 (PyTorch 9.1)" in ran
    assert "a step takes 1.50 times as long, one FFN's forward pass 2.0 times as with dense FFNs" in trees
    assert several == "**On several GPUs it has not been run.**"


def test_several_devices_are_held_against_one():
    many = [large("tree", 2, 0.09, 4.1), large("tree", 2, 0.09, 4.0, "cpu")]
    told = large_trees.told([*ONE, *many])[-1]
    assert (
        "8.0 GiB a device, 0.090 s a step (one device: 16.0 GiB, 0.150 s; losses at most 2.5% apart)" in told
    )
    assert told.count("GiB a device") == 1, "processes of a CPU share its memory"
    shown = large_trees.large_table([*ONE, *many]).source
    assert "| Tree | 2 × NVIDIA X1 | 1.200 | 8.0 | — | — | 0.090 | 6.00 → 4.10 |" in shown


def test_the_committed_runs_are_shown():
    tables = large_trees.benchmarks()
    assert {found["ffn"] for found in tables} == {"dense", "tree"}
    assert all(found["parameters"] > 1e9 for found in tables)
    assert large_trees.large_steps(tables).csv.count("\n") == 1 + sum(len(found["steps"]) for found in tables)
    assert json.dumps(tables)


# --- Trained twice ------------------------------------------------------------------------------------------------


def mean_of(arm: str, low: float, high: float, p: float, same: int = 0) -> dict:
    difference = (low + high) / 2
    return {
        "task": "add7",
        "arm": arm,
        "column": "no_ffn_accuracy",
        "moment": "first_best",
        "seeds": 20,
        "first": 0.2,
        "second": 0.2 + difference,
        "difference": difference,
        "low": low,
        "high": high,
        "p": p,
        "same_to_the_bit": same,
    }


@pytest.fixture
def twice() -> dict:
    return {
        "device": "NVIDIA X1",
        "command": "python benchmarks/from_nothing.py FOLDER",
        "arms": ["dense", "moe", "narrow"],
        "runs": 60,
        "missing": 0,
        "left": {},
        "calls": [{"seconds": 60, "devices": 2, "runs": 20}, {"seconds": 30, "devices": 2, "runs": 40}],
        "device_seconds": 180,
        "again": [
            mean_of("dense", -0.001, 0.002, 0.4),
            mean_of("moe", 0.01, 0.05, 0.001),
            mean_of("narrow", 0, 0, 1.0, same=20),
        ],
    }


def test_the_time_from_nothing_is_told_with_its_devices_and_calls(twice):
    time, _ = again.told(twice)
    assert "60 models (3 arms of each task, all their seeds) took 3.0 minutes of NVIDIA X1" in time
    assert "2 at once, in 2 calls" in time
    assert "missing" not in time
    twice["missing"] = 7
    assert "60 models (of 3 arms of each task) took" in again.told(twice)[0]
    assert "**Still missing: 7 models.**" in again.told(twice)[0]
    twice["left"] = {"controls": ["add7", "histogram"]}
    assert "**Still missing: 7 models and controls (Addition and Histogram).**" in again.told(twice)[0]


def test_the_sweeps_time_is_told_where_it_was_measured(twice, monkeypatch):
    monkeypatch.setattr(again, "committed", lambda pattern: {"from_nothing-sweeps": twice})
    assert again.sweeps() == (
        "The sweeps beside them: 60 models took 3.0 minutes of NVIDIA X1, 2 at once, in 2 calls "
        "(`python benchmarks/from_nothing.py FOLDER`)."
    )
    monkeypatch.setattr(again, "committed", lambda pattern: {})
    assert again.sweeps() is None


def test_means_that_came_out_otherwise_are_named(twice):
    _, same = again.told(twice)
    assert "Of 3 means, 1 differs" in same
    assert "in 1 every model has the very number it had" in same
    assert "half of them by at most 0.2 points, the least certain by 5.0" in same
    assert "Addition, MoE, accuracy without the FFN: +1.0 to +5.0 points" in same
    twice["again"][1]["p"] = 0.06
    _, same = again.told(twice)
    assert "Of 3 means, none differ" in same
    assert "These differ" not in same


def test_the_picture_shows_every_mean(twice):
    figure = again.differences(twice)
    assert "1 of 3 differ; the largest difference is 3.0 points" in figure.alt
    assert again.rows(twice)["differs"].to_list() == [False, True, False]


def test_nothing_is_told_of_differences_where_nothing_was_compared(twice):
    twice["again"] = []
    assert len(again.told(twice)) == 1
