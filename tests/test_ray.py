"""The Ray engine: the same shards on a cluster's workers give the same bits, and lost workers lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path

import pytest

from sparsity_moves.errors import UserError
from sparsity_moves.store import Store
from sparsity_moves.studies import Study, arm, engine, tables

LOOKS = {"steps": 240, "evaluate_every": 30}
SPECS = [
    *(arm("moe", "smoke", "add7", seed, **LOOKS) for seed in (1, 2, 3)),
    arm("moe_glu", "smoke", "modular_addition", 1, **LOOKS),
]
STUDY = Study("smoke", tuple((f"arm {i}", spec) for i, spec in enumerate(SPECS)))


def written(store: Store) -> dict[str, bytes]:
    """Both tables' bytes."""
    store.write_tables(*tables([STUDY], store), {})
    return {name: (store.root / name).read_bytes() for name in ("runs.parquet", "curves.parquet")}


def workers(mark: str) -> list[int]:
    """Our cluster's processes that are training a shard."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            training = (process / "cmdline").read_bytes().startswith(b"ray::work")
            if training and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_two_workers_one_of_them_killed_give_the_local_engine_s_bits(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    local, cluster = Store(tmp_path / "local" / "smoke"), Store(tmp_path / "cluster" / "smoke")
    engine.run(SPECS, local, workers=2, stack=2, quiet=True)

    monkeypatch.setenv("SPARSITY_MOVES_MARK", mark := uuid.uuid4().hex)
    killed = []

    def kill() -> None:
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            for worker in workers(mark)[:1]:
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    trained = engine.run(SPECS, cluster, engine="ray", workers=2, stack=2, quiet=True)
    killer.join()
    assert killed, "a worker was killed while it trained"
    assert trained == len(SPECS)
    assert written(cluster) == written(local)
    assert cluster.damage() == []
    for spec in SPECS:
        ours, theirs = (s.runs / spec.spec_id / "checkpoint.safetensors" for s in (cluster, local))
        assert ours.read_bytes() == theirs.read_bytes()
    assert engine.run(SPECS, cluster, engine="ray", quiet=True) == 0, "a finished run is not trained again"
    assert not workers(mark), "no worker goes on"


def test_without_ray_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray: install it with `pip install 'sparsity-moves\[ray\]'`"):
        engine.run(SPECS[:1], Store(tmp_path), engine="ray", quiet=True)


def test_the_local_engine_needs_no_ray(tmp_path):
    code = """
    import sys
    sys.modules["ray"] = None
    from sparsity_moves.store import Store
    from sparsity_moves.studies import arm, engine
    if __name__ == "__main__":
        spec = arm("dense", "smoke", "add7", 1, steps=2, evaluate_every=1)
        assert engine.run([spec], Store(sys.argv[1]), quiet=True) == 1
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(code))
    subprocess.run([sys.executable, tmp_path / "train.py", tmp_path / "smoke"], check=True)


def test_an_address_without_ray_and_a_cluster_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match="an address is a Ray cluster's: it needs --engine ray"):
        engine.run(SPECS[:1], Store(tmp_path), address="auto", quiet=True)
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="no Ray cluster answers at auto"):
        engine.run(SPECS[:1], Store(tmp_path), engine="ray", address="auto", quiet=True)
