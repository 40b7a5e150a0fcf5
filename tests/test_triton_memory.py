"""Every kernel that training launches fits a Hopper GPU, at the widest models of the sweeps: compiled without one."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is there on Linux only")

SHARED = 227 * 1024
"""Bytes of shared memory that one program may have on compute capability 9.0 (CUDA C++ programming guide)."""


@cache
def asked(*arguments: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compiled.py"), *arguments],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_fits_a_multiprocessors_shared_memory():
    found = asked()
    assert {"_attend_blocks_backward", "_route_backward", "_through", "_back", "_matrix"} <= set(found)
    assert {"_weights_backward", "_rows_from_pairs", "_glance", "_walk", "_open_backward"} <= set(found)
    assert {"_map", "_map_backward", "_round", "_loss", "_loss_backward"} <= set(found)
    assert {name: bytes_ for name, bytes_ in found.items() if bytes_ > SHARED} == {}


def test_three_programs_of_a_routers_gradient_fit_a_multiprocessor():
    """Each takes a kilobyte for itself."""
    assert 3 * (asked()["_route_backward"] + 1024) <= SHARED + 1024


def test_a_kernel_that_does_not_is_seen():
    assert asked("256")["_back"] > SHARED
