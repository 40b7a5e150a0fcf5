"""Training a study: whatever interrupts it, and however it is cut up, the same tables come out."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsity_moves.errors import UserError
from sparsity_moves.kernels.precision import _TURNS, beside, products, ten_bits
from sparsity_moves.store import Store
from sparsity_moves.studies import Study, arm, engine, results, tables
from sparsity_moves.studies.engine import on_gpus, planning

LOOKS = {"steps": 120, "evaluate_every": 30}
SPECS = [
    *(arm("moe", "smoke", "add7", seed, **LOOKS) for seed in (1, 2, 3)),
    *(arm("moe_glu", "smoke", "modular_addition", seed, **LOOKS) for seed in (1, 2, 3)),
    arm("moe_switch", "smoke", "histogram", 1, **LOOKS),
]
STUDY = Study("smoke", tuple((f"arm {i}", spec) for i, spec in enumerate(SPECS)))

TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from test_engine import SPECS
from sparsity_moves.store import Store
from sparsity_moves.studies import engine

if __name__ == "__main__":
    engine.run(SPECS, Store(sys.argv[2]), workers=2, stack=1, quiet=True)
"""


def written(store: Store) -> dict[str, bytes]:
    """Both tables' bytes."""
    store.write_tables(*tables([STUDY], store), {})
    return {name: (store.root / name).read_bytes() for name in ("runs.parquet", "curves.parquet")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, bytes]:
    """The tables of a run that nothing disturbed: one process, three models at once."""
    store = Store(tmp_path_factory.mktemp("whole") / "smoke")
    assert engine.run(SPECS, store, workers=1, stack=3, quiet=True) == len(SPECS)
    return written(store)


def session(number: int) -> list[int]:
    """The living processes of a session, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after[3]) == number and after[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def start(script: Path, root: Path) -> subprocess.Popen:
    script.write_text(TRAIN)
    return subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parent), str(root)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def stored(root: Path) -> dict[str, tuple[int, int]]:
    """Every finished run's directory: inode and time of change."""
    return {
        p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (root / "runs").glob("*") if p.name[0] != "."
    }


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_killed_by_force_and_run_again_the_tables_are_the_same(tmp_path, uninterrupted):
    """kill -9 of the training process at a random moment after its first runs are stored."""
    root = tmp_path / "smoke"
    process = start(tmp_path / "train.py", root)
    try:
        wait_for(lambda: stored(root) or process.poll() is not None, 120, "a first stored run")
        time.sleep(random.random() / 3)
        assert process.poll() is None, "it was over before it was killed"
        assert len(session(process.pid)) > 1, "it has workers"
        process.kill()
        process.wait()
        wait_for(lambda: not session(process.pid), 20, "the workers to end with their parent")
    finally:
        for left in session(process.pid):
            os.kill(left, signal.SIGKILL)
    kept = stored(root)
    assert 0 < len(kept) < len(SPECS)
    store = Store(root)
    assert store.damage() == []

    assert engine.run(SPECS, store, workers=2, stack=4, quiet=True) == len(SPECS) - len(kept)
    assert {name: now for name, now in stored(root).items() if name in kept} == kept, "nothing was retrained"
    assert not list((root / "runs").glob(".*")), "what the killed writers left is gone"
    assert written(store) == uninterrupted


def test_a_second_run_trains_nothing_and_touches_nothing(tmp_path, uninterrupted):
    """And one model at a time gives the same bits as three."""
    store = Store(tmp_path / "smoke")
    engine.run(SPECS, store, workers=2, stack=1, quiet=True)
    before, first = stored(store.root), written(store)
    assert first == uninterrupted
    assert engine.run(SPECS, store, quiet=True) == 0
    assert stored(store.root) == before
    assert written(store) == first


def test_a_worker_that_is_killed_is_one_sentence_and_what_finished_is_kept(tmp_path):
    process = start(tmp_path / "train.py", tmp_path / "smoke")
    try:
        wait_for(lambda: stored(tmp_path / "smoke") or process.poll() is not None, 120, "a first stored run")
        worker = max(session(process.pid))  # the newest process
        os.kill(worker, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        for left in session(process.pid):
            os.kill(left, signal.SIGKILL)
    assert process.returncode not in (0, None)
    assert "UserError: a training process was ended from outside" in said
    assert "finished runs are kept, and the same command goes on from there" in said
    assert Store(tmp_path / "smoke").damage() == []
    assert stored(tmp_path / "smoke")


def test_a_disk_that_refuses_stops_the_training_with_the_workers_sentence(tmp_path):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "runs").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*what was stored before is untouched"):
        engine.run(SPECS[:1], Store(tmp_path / "smoke"), quiet=True)


def test_a_damaged_run_is_trained_again_and_comes_out_the_same(tmp_path, capsys):
    specs = [arm("moe", "smoke", "add7", seed, steps=10, evaluate_every=5) for seed in (1, 2, 3)]
    store = Store(tmp_path / "smoke")
    engine.run(specs, store, quiet=True)
    path = store.runs / specs[1].spec_id / "curve.parquet"
    whole, untouched = path.read_bytes(), stored(store.root)
    path.write_bytes(whole[:-1])
    assert engine.run(specs, store, quiet=True) == 1
    said = capsys.readouterr().err
    assert "curve.parquet is missing or damaged" in said
    assert "is trained again" in said
    assert path.read_bytes() == whole
    assert all(stored(store.root)[s.spec_id] == untouched[s.spec_id] for s in (specs[0], specs[2]))


def test_a_spec_asked_for_twice_is_trained_once(tmp_path):
    spec = arm("dense", "smoke", "add7", 1, steps=2, evaluate_every=1)
    assert engine.run([spec, spec], Store(tmp_path), quiet=True) == 1


class TestSeveralGpus:
    """A process a GPU, which sees its own and no other, and trains a few fleets side by side."""

    @pytest.mark.parametrize(
        ("given", "names"), [(None, ["0", "1"]), ("3,5", ["3", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
    )
    def test_they_are_called_as_the_system_calls_them(self, monkeypatch, given, names):
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert on_gpus.visible_gpus() == names

    @pytest.mark.parametrize(("workers", "slots"), [(None, 8), (1, 1), (3, 3), (9, 9)])
    def test_as_many_fleets_as_asked_for_share_them(self, tmp_path, workers, slots):
        place = on_gpus.GpuEngine(Store(tmp_path), None, workers, 60.0, ["3", "5"])
        assert (place.device, place.slots) == ("cuda", slots)
        assert len(place.processes) == min(slots, 2)
        place.close()
        assert not any(process.is_alive() for process in place.processes)

    def test_fleets_side_by_side_give_the_same_tables(self, monkeypatch, tmp_path, uninterrupted):
        """With GPUs that are not there, their processes train on the CPU."""
        monkeypatch.setattr(on_gpus, "visible_gpus", lambda: ["0"])
        store = Store(tmp_path)
        assert engine.run(SPECS, store, stack=2, quiet=True) == len(SPECS)
        assert written(store) == uninterrupted

    def test_a_process_that_is_killed_ends_the_training_with_a_sentence(self, tmp_path):
        place = on_gpus.GpuEngine(Store(tmp_path), None, 1, 60.0, ["0"])
        place.submit(0, engine.Shard((SPECS[0],)))
        os.kill(place.processes[0].pid, signal.SIGKILL)
        place.processes[0].join()
        with pytest.raises(UserError, match="ended from outside"):
            place.poll(0.1)
        place.close()

    def test_what_goes_wrong_in_a_shard_is_raised_here(self, tmp_path):
        place = on_gpus.GpuEngine(Store(tmp_path / "gone"), None, 1, 60.0, ["0"])
        place.submit(0, engine.Shard((SPECS[0], SPECS[3])))  # of different shapes
        with pytest.raises(AssertionError, match="differ in their seeds only"):
            place.poll(60.0)
        place.close()

    def test_nobody_changes_how_products_round_under_another(self):
        seen = []

        def fleet(precision):
            for _ in range(20):
                with products(precision):
                    time.sleep(0.0005)
                    seen.append((precision == "tf32", torch.backends.cuda.matmul.allow_tf32))

        before = torch.backends.cuda.matmul.allow_tf32
        threads = [threading.Thread(target=fleet, args=(precision,)) for precision in ("tf32", "fp32") * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 120
        assert all(wanted == there for wanted, there in seen)
        assert torch.backends.cuda.matmul.allow_tf32 == before

    def test_who_looks_waits_for_none_who_measures(self):
        """Both are there at once, or the barrier breaks; each rounds its own way."""
        met, seen = threading.Barrier(3), {}

        def launch(number, precision):
            with beside(precision):
                met.wait(10)
                seen[number] = ten_bits(), torch.backends.cuda.matmul.allow_tf32

        asked = ("tf32", "fp32", "tf32")
        threads = [threading.Thread(target=launch, args=each) for each in enumerate(asked)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {0: (True, False), 1: (False, False), 2: (True, False)}

    def test_a_turn_within_a_turn_is_an_error_and_no_deadlock(self):
        for outer, inner in ((beside, products), (products, beside), (products, products), (beside, beside)):
            with outer("fp32"), pytest.raises(AssertionError, match="has its turn already"), inner("tf32"):
                pass
        with beside("fp32"):
            assert not ten_bits()

    def test_who_records_is_alone_and_is_not_made_to_wait_for_those_who_come_later(self):
        order, inside = [], threading.Event()

        def record():
            with products("tf32"):
                order.append("recorded" if ten_bits() else "recorded with too many bits")

        def measure():
            with beside("fp32"):
                inside.set()
                recording.start()
                while not _TURNS.waiting:
                    time.sleep(0.001)
                looking.start()
                time.sleep(0.05)
                order.append("measured")

        def look():
            with beside("tf32"):
                order.append("looked")

        recording, looking = threading.Thread(target=record), threading.Thread(target=look)
        measuring = threading.Thread(target=measure)
        measuring.start()
        assert inside.wait(10)
        for thread in (measuring, recording, looking):
            thread.join(10)
        assert order == ["measured", "recorded", "looked"]
        assert not ten_bits()


class TestShards:
    """How runs are cut into fleets."""

    def test_a_fleet_is_runs_that_differ_in_their_seed_only(self):
        cut = engine.shards(SPECS, 2, "cpu")
        assert all(len({spec.shape for spec in shard.specs}) == 1 for shard in cut)
        assert all(len(shard.specs) <= 2 for shard in cut)
        assert sorted(s.spec_id for shard in cut for s in shard.specs) == sorted(s.spec_id for s in SPECS)

    def test_a_fleet_that_does_not_fit_is_cut_into_equals(self):
        """Twenty seeds of the full-scale histogram: 10,000 sequences of ten tokens a step, each in training."""
        sizes = {}
        for name in ("dense", "narrow", "moe", "moe_active", "tree"):
            specs = [arm(name, "paper", "histogram", seed) for seed in range(20)]
            sizes[name] = [len(shard.specs) for shard in engine.shards(specs, 64, "cuda")]
        assert sizes.pop("tree") == [7, 7, 6]
        assert list(sizes.values()) == [[10, 10]] * 4

    def test_a_fleet_holds_no_more_than_there_is_room_for(self):
        """Open units alone are kept where experts are sorted, and all where they are masked."""
        few, all_ = (arm("moe", "paper", "histogram", 0, experts=16, top_k=k) for k in (1, 16))
        assert planning.most(few, "cuda") == int(12e9 / (4 * 100_000 * (2 * 32 + 14 * 128)))
        assert planning.most(all_, "cuda") == int(12e9 / (4 * 100_000 * (4 * 512 + 14 * 128)))
        assert planning.most(replace(few, precision="fp32"), "cuda") == planning.most(few, "cuda")
        for masked in (
            arm("dense", "paper", "histogram", 0, precision="fp32"),
            replace(few, d_model=96, width=512),  # heads of 24 dimensions are the reference's
        ):
            held = 4 * 512 + 14 * masked.d_model
            assert planning.most(masked, "cuda") == int(12e9 / (4 * 100_000 * held))
        assert (
            planning.most(few, "cpu")
            == planning.most(all_, "cpu")
            == int(8e9 / (4 * 100_000 * (2048 + 1792)))
        )

    def test_the_costliest_comes_first(self):
        costs = [shard.cost for shard in engine.shards(SPECS, 2, "cpu")]
        assert costs == sorted(costs, reverse=True)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("tables"))
    specs = [arm("moe", "smoke", task, 1, steps=4, evaluate_every=2) for task in ("add7", "modular_addition")]
    engine.run(specs, store, quiet=True)
    return results(Study("study", tuple((f"arm {i}", spec) for i, spec in enumerate(specs))), store)


class TestTables:
    """The contract between runs and figures."""

    def test_runs_have_the_promised_columns(self, result):
        promised = [
            "spec_id",
            "study",
            "task",
            "arm",
            "seed",
            "moment",
            "step",
            "accuracy",
            "test_accuracy",
            "no_ffn_accuracy",
            "no_attention_accuracy",
            "mean_ffn_accuracy",
            "mean_attention_accuracy",
            "resample_ffn_accuracy",
            "resample_attention_accuracy",
            "attention_share",
            "router_nmi",
            "parameters",
            "active_parameters",
            "flops_per_token",
        ]
        assert result.moments.columns[:7] == promised[:7]
        assert set(promised) <= set(result.moments.columns)
        assert {*SPECS[0].__dataclass_fields__} <= set(result.moments.columns)

    def test_curves_have_the_promised_columns_in_the_order_of_the_steps(self, result):
        promised = [
            "spec_id",
            "step",
            "loss",
            "accuracy",
            "test_accuracy",
            "no_ffn_accuracy",
            "no_attention_accuracy",
        ]
        assert set(promised) <= set(result.curves.columns)
        assert result.curves["step"].to_list() == [2, 4, 2, 4]

    def test_a_setting_that_a_task_does_not_have_is_null(self, result):
        of = {row["task"]: row for row in result.moments.iter_rows(named=True)}
        assert (of["add7"]["modulus"], of["modular_addition"]["modulus"]) == (None, 7)
        assert (of["add7"]["digits"], of["modular_addition"]["digits"]) == (2, None)
