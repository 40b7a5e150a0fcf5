"""The programs that the benchmark compares do the same work: equal weights and batches give equal losses."""

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from peers import fleet, plain, vmap
from peers.work import Problem, Work, work

STEPS = 8
PROBLEMS = [Problem("add7", arm) for arm in ("dense", "glu", "moe", "moe_glu")]
PROBLEMS += [Problem("modular_addition", "moe", "smoke")]  # untied, GELU, both ways, the whole pool


def agree(given: Work, losses) -> None:
    ours = fleet.fleet(given.part(0, 3), "cpu")()
    assert losses.shape[0] == STEPS
    off = (losses - ours[:, : losses.shape[1]]).abs() / ours[:, : losses.shape[1]]
    assert off.max() < 1e-4, f"largest relative difference of a step's loss: {off.max():.1e}"
    assert ours[-1].mean() < ours[0].mean()


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_plain_loop_trains_as_the_fleet_does(problem) -> None:
    given = work(problem, 3, STEPS)
    for form in plain.forms(given.spec, "cpu"):
        agree(given, plain.build(given, "cpu", form)())


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_vmap_ensemble_trains_as_the_fleet_does(problem) -> None:
    given = work(problem, 3, STEPS)
    agree(given, vmap.build(given, "cpu", "eager")())


@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_jax_trains_as_the_fleet_does(problem) -> None:
    from peers import jax_vmap

    given = work(problem, 3, STEPS)
    agree(given, jax_vmap.build(given, "cpu", "float32")())


def test_a_loss_that_is_off_is_seen() -> None:
    from peers_speed import TOLERANCE, difference

    assert difference([[2.0], [1.0]], [[2.0, 5.0], [1.1, 5.0]]) > TOLERANCE["tf32"]
    assert not difference([[float("nan")]], [[1.0]]) <= TOLERANCE["tf32"]
    assert difference([[2.0], [1.0]], [[2.0, 5.0], [1.0, 5.0]]) == 0


def test_the_table_hides_neither_a_missing_row_nor_one_that_disagrees() -> None:
    from rich.console import Console

    from peers_speed import TOLERANCE, table

    good = {"model_steps_per_second": 80.0, "times_a": 8.0, "of_floor": 0.5, "setup": 1.0, "form": "fleet"}
    rows = {
        "a": {
            **good,
            "model_steps_per_second": 10.0,
            "times_a": 1.0,
            "loss_difference": 1e-6,
            "agrees": True,
        },
        "c": {**good, "loss_difference": 0.3, "agrees": False},
        "d": {"reason": "JAX is not installed"},
        "e": {**good, "loss_difference": 0.0, "agrees": True},
    }
    cells = [{"problem": "add7, moe", "models": 64, "rows": rows}]
    shown, notes = table({"cells": cells, "tolerance": TOLERANCE, "left_out": ["add7, moe, M = 4: left out"]})
    console = Console(width=160)
    with console.capture() as text:
        console.print(shown)
    assert "80 ✗" in text.get()
    assert any("LOSSES DIFFER" in note and "(c)" in note for note in notes)
    assert any("not available here: JAX is not installed" in note for note in notes)
    assert "left out" in notes[-1]
