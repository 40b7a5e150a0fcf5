"""A long training that is interrupted goes on from its last state, and nobody can tell from its numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from sparsity_moves.errors import UserError
from sparsity_moves.store import Broken, Store, files
from sparsity_moves.store.unfinished import FOLDER, Unfinished
from sparsity_moves.studies import Study, arm, engine, tables
from sparsity_moves.studies.engine import worker
from sparsity_moves.training import Spec, train
from test_engine import session, wait_for
from test_store import swept_meanwhile

LOOKS = {"steps": 50, "evaluate_every": 10}
ABOUT = {"device": "cpu", "packages": "torch 1"}

COURSES = {
    "batches drawn, a probe, a falling rate": ("moe_switch", "add7", {"probe": 20, "decay": 30}),
    "the whole pool, grokking": ("dense", "modular_addition", {"modulus": 5, "learning_rate": 0.01}),
    "a pool drawn anew": ("moe", "histogram", {"redraw_every": 15}),
    "dropout": ("dense", "add7", {"dropout": 0.2}),
    "past a block of draws": ("moe_frozen", "add7", {"steps": 300, "evaluate_every": 20, "digits": 1}),
}


@pytest.mark.parametrize("name", COURSES)
def test_from_any_state_on_the_bits_are_the_same(name):
    which, task, more = COURSES[name]
    specs = [arm(which, "smoke", task, seed, **{**LOOKS, **more}) for seed in (1, 2)]
    states = []
    whole = train(specs, keep=states.append, keep_every=0.0)
    assert len(states) == specs[0].steps // specs[0].evaluate_every - 1, "a look a state, none after the last"
    for state in states[:: max(1, len(states) // 3)]:
        for one, other in zip(whole, train(specs, start=state), strict=True):
            assert one.curve == other.curve
            assert one.moments.keys() == other.moments.keys()
            for moment in one.moments:
                assert one.moments[moment].step == other.moments[moment].step
                ours, theirs = one.moments[moment].parameters, other.moments[moment].parameters
                assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_training_shorter_than_a_minute_keeps_no_state():
    states = []
    train([arm("dense", "smoke", "add7", 1, **LOOKS)], keep=states.append)
    assert states == []


# --- On disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def left(tmp_path) -> Unfinished:
    """A state on disk."""
    where = Unfinished(tmp_path, ["a" * 16, "b" * 16], ABOUT)
    where.save(STATE)
    return where


STATE = {"weights": torch.arange(100.0), "step": torch.tensor(3)}


class TestAStateOnDisk:
    """It comes back whole or not at all."""

    def test_it_comes_back(self, left):
        found = left.load()
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in STATE.items())
        left.remove()
        assert left.load() is None

    def test_the_next_takes_its_place(self, left):
        left.save(STATE | {"step": torch.tensor(4)})
        assert int(left.load()["step"]) == 4
        assert len(list(left.path.parent.iterdir())) == 1

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.999])
    def test_a_flipped_bit_is_found_wherever_it_is(self, left, share):
        content = bytearray(left.path.read_bytes())
        content[int(share * len(content))] ^= 4
        left.path.write_bytes(content)
        with pytest.raises(Broken, match=left.path.name):
            left.load()

    @pytest.mark.parametrize("content", [b"", b"\x80\x04", b"\xff" * 50, save({"x": torch.zeros(2)})])
    def test_what_is_no_state_of_ours_is_refused(self, left, content):
        left.path.write_bytes(content)
        with pytest.raises(Broken, match="is damaged"):
            left.load()

    def test_half_a_file_is_refused(self, left):
        content = left.path.read_bytes()
        left.path.write_bytes(content[: len(content) // 2])
        with pytest.raises(Broken, match="is no state of a training"):
            left.load()

    def test_another_devices_or_other_packages_state_is_refused(self, left, tmp_path):
        for key, value in (("device", "a GPU"), ("packages", "torch 2")):
            other = Unfinished(tmp_path, ["a" * 16, "b" * 16], ABOUT | {key: value})
            assert other.path == left.path
            with pytest.raises(Broken, match=f"another training's, by its {key}"):
                other.load()

    def test_other_runs_have_another_file_and_a_copy_is_refused(self, left, tmp_path):
        other = Unfinished(tmp_path, ["a" * 16], ABOUT)
        assert other.load() is None
        left.path.rename(other.path)
        with pytest.raises(Broken, match="another training's, by its runs"):
            other.load()

    def test_a_disk_that_refuses_leaves_the_last_one(self, left, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("sparsity_moves.store.files.sync", full)
        with pytest.raises(UserError, match="there is no space left on the disk"):
            left.save({"step": torch.tensor(9)})
        monkeypatch.undo()
        assert int(left.load()["step"]) == 3


# --- The engine -----------------------------------------------------------------------------------------------------

LONG = [
    arm("moe", "smoke", "add7", seed, steps=2000, evaluate_every=20, digits=1, width=16) for seed in (1, 2)
]
TRAIN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_resume import LONG
from sparsity_moves.store import Store
from sparsity_moves.studies import engine

if __name__ == "__main__":
    engine.run(LONG, Store(sys.argv[1]), workers=1, keep_every=0.0, quiet=True)
"""


def written(store: Store, specs: list[Spec]) -> dict[str, bytes]:
    """Both tables' bytes."""
    study = Study("smoke", tuple((f"arm {i}", spec) for i, spec in enumerate(specs)))
    store.write_tables(*tables([study], store), {})
    return {name: (store.root / name).read_bytes() for name in ("runs.parquet", "curves.parquet")}


def states(root: Path) -> list[Path]:
    return sorted((root / FOLDER).glob("*.safetensors"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, bytes]:
    store = Store(tmp_path_factory.mktemp("whole") / "smoke")
    engine.run(LONG, store, workers=1, quiet=True)
    assert not (store.root / FOLDER).exists(), "a short shard writes no state"
    return written(store, LONG)


@pytest.fixture
def killed(tmp_path) -> Path:
    """What kill -9 in the middle of a long shard leaves."""
    root, script = tmp_path / "smoke", tmp_path / "train.py"
    script.write_text(TRAIN)
    process = subprocess.Popen([sys.executable, str(script), str(root)], start_new_session=True)
    try:
        wait_for(lambda: states(root) or process.poll() is not None, 120, "a state")
        assert process.poll() is None, "it was over before it was killed"
        process.kill()
        process.wait()
        wait_for(lambda: not session(process.pid), 20, "the workers to end with their parent")
    finally:
        for worker in session(process.pid):
            os.kill(worker, signal.SIGKILL)
    assert Store(root).spec_ids() == []
    assert len(states(root)) == 1
    return root


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
class TestKilledInTheMiddleOfALongShard:
    """kill -9, and the same command again."""

    def test_it_goes_on_and_says_so_and_the_tables_are_the_same(self, killed, uninterrupted, capfd):
        store, ids = Store(killed), [spec.spec_id for spec in LONG]
        about = {name: str(value) for name, value in worker.circumstances().items()}
        before = float(Unfinished(killed, ids, about).load()["seconds"])
        assert engine.run(LONG, store, workers=1) == len(LONG)
        (said,) = [line for line in capfd.readouterr().err.splitlines() if "goes on" in line]
        assert said.startswith("training 2 models of add7 goes on from step ")
        step = int(said.split()[-3])
        assert 20 <= step < LONG[0].steps
        assert step % 20 == 0
        assert states(killed) == [], "a stored shard's state is gone"
        assert store.damage() == []
        assert written(store, LONG) == uninterrupted
        (shard,) = store.shards(ids)
        assert shard["shard_seconds"] > before > 0, "the account of the time has both parts"

    def test_a_damaged_state_is_left_unused_with_a_sentence(self, killed, uninterrupted, capfd):
        (path,) = states(killed)
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        store = Store(killed)
        assert engine.run(LONG, store, workers=1) == len(LONG)
        said = capfd.readouterr().err
        assert (
            f"{path} is damaged: it does not match its checksum; its models are trained from the start"
            in said
        )
        assert states(killed) == []
        assert written(store, LONG) == uninterrupted


class TestSweep:
    """What is left behind and of no more use."""

    def test_a_state_goes_when_all_its_runs_are_stored_and_not_before(self, tmp_path):
        specs = [arm("dense", "smoke", "add7", seed, steps=2, evaluate_every=1) for seed in (1, 2)]
        store = Store(tmp_path)
        Unfinished(tmp_path, [spec.spec_id for spec in specs], ABOUT).save(STATE)
        engine.run(specs[:1], store, quiet=True)
        store.sweep()
        assert len(states(tmp_path)) == 1
        engine.run(specs[1:], store, quiet=True)
        store.sweep()
        assert states(tmp_path) == []

    def test_a_dead_writers_part_goes_and_a_living_ones_stays(self, left, tmp_path, monkeypatch):
        """Whatever its number: a process that lives may have it by now."""
        dead = left.path.with_name(f".x.safetensors.{os.getpid()}.part")
        dead.write_bytes(b"x")
        with swept_meanwhile(monkeypatch, files, tmp_path):
            left.save(STATE)
        assert list(left.path.parent.iterdir()) == [left.path]
        assert left.load() is not None


def test_when_the_time_is_up_a_shard_is_left_at_its_last_state_and_the_next_call_goes_on(
    tmp_path, monkeypatch, capsys
):
    """With a clock that leaps past the end once a new state is kept."""
    specs = [arm("dense", "smoke", "add7", seed, steps=100_000, evaluate_every=50) for seed in (1, 2)]
    store = Store(tmp_path)

    def states() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).glob("*.safetensors")}

    class Clock:
        sleep = staticmethod(time.sleep)
        before = states()

        @classmethod
        def monotonic(cls) -> float:
            return time.monotonic() + (3600 if states() != cls.before else 0)

    monkeypatch.setattr(engine, "time", Clock)
    assert engine.run(specs, store, minutes=30, keep_every=0.0, quiet=True) == 0
    assert not store.spec_ids()
    Clock.before = states()
    assert len(Clock.before) == 1
    assert engine.run(specs, store, minutes=30, keep_every=0.0) == 0
    assert "goes on from step" in capsys.readouterr().err
