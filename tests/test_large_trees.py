"""The script for models past a billion parameters, tried on a tiny one: sharded, it loses what one process loses."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="an extra")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "large_trees.py"
STEPS, BATCH, LENGTH = 3, 4, 24


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_two_processes_have_the_losses_of_one(script, tmp_path):
    model = script["build"](script["SIZES"]["tiny"], "tree", LENGTH, torch.device("cpu"))
    alone = script["steps"](model, BATCH, LENGTH, STEPS, torch.device("cpu"), False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = f"--device cpu --shard --size tiny --batch {BATCH} --length {LENGTH} --steps {STEPS}".split()
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(port),
    ]
    found = tmp_path / "found.json"
    done = subprocess.run(
        [*launch, str(SCRIPT), *given, "--out", str(found)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    shared = json.loads(found.read_text())
    assert shared["processes"] == 2
    assert [row["loss"] for row in shared["steps"]] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    assert alone[0]["loss"] != alone[-1]["loss"], "or equal losses would say nothing"


def test_it_says_what_it_needs(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["large_trees.py", "--device", "cpu", "--shard"])
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="wants torchrun"):
        script["main"]()


def test_the_large_shape_is_opts_with_as_many_units(script):
    size = script["SIZES"]["opt-1.3b"]
    units = size.trees * ((2 << size.height) - 1)
    assert (size.layers, size.d_model, size.width, units) == (24, 2048, 8192, 8160)
    assert 1.2e9 < size.layers * (4 * size.d_model**2 + 2 * size.d_model * units) < 1.3e9
