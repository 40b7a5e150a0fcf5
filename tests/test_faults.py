"""What may go wrong while a store is written: two writers, a kill, a full disk, a model whose loss is no number."""

from __future__ import annotations

import math
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import polars as pl
import pytest

from sparsity_moves.store import Store, export, merge
from sparsity_moves.store.claims import Claims
from sparsity_moves.studies import Study, arm, engine, tables

LOOKS = {"steps": 120, "evaluate_every": 30}
SPECS = [
    *(arm("moe", "smoke", "add7", seed, **LOOKS) for seed in (1, 2, 3)),
    *(arm("moe_glu", "smoke", "modular_addition", seed, **LOOKS) for seed in (1, 2)),
]

TRAIN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_faults import SPECS
from sparsity_moves.errors import UserError
from sparsity_moves.store import Store
from sparsity_moves.studies import engine

if __name__ == "__main__":
    try:
        print(engine.run(SPECS, Store(sys.argv[1]), workers=1, stack=1, quiet=True))
    except UserError as error:
        print(error)
"""


def written(store: Store, specs=tuple(SPECS)) -> dict[str, bytes]:
    """Both tables' bytes."""
    study = Study("smoke", tuple((f"arm {i}", spec) for i, spec in enumerate(specs)))
    store.write_tables(*tables([study], store), {})
    return {name: (store.root / name).read_bytes() for name in ("runs.parquet", "curves.parquet")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Store:
    """A store that nothing disturbed."""
    store = Store(tmp_path_factory.mktemp("whole") / "smoke")
    engine.run(SPECS, store, workers=2, quiet=True)
    return store


@pytest.fixture(scope="module")
def undisturbed(whole) -> dict[str, bytes]:
    return written(whole)


@pytest.fixture
def script(tmp_path) -> Path:
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path / "train.py"


def python(*words: object, **more) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def stored(root: Path) -> int:
    return len([p for p in (root / "runs").glob("*") if p.name[0] != "."])


class TestTwoProcessesOnOneStore:
    """They share the work, and neither hurts the other."""

    def test_every_run_is_trained_once(self, script, tmp_path, undisturbed):
        both = [python(script, tmp_path / "smoke") for _ in range(2)]
        said = [process.communicate(timeout=120) for process in both]
        trained = [int(out) for out, _ in said]
        assert sum(trained) == len(SPECS), said
        store = Store(tmp_path / "smoke")
        assert store.damage() == []
        assert written(store) == undisturbed

    def test_one_killed_by_force_leaves_its_shard_to_the_other(self, script, tmp_path, undisturbed):
        root = tmp_path / "smoke"
        victim, other = both = [python(script, root) for _ in range(2)]
        end = time.monotonic() + 120
        while not stored(root):
            assert time.monotonic() < end
            assert all(process.poll() is None for process in both)
            time.sleep(0.02)
        victim.send_signal(signal.SIGKILL)
        out, err = other.communicate(timeout=120)
        victim.communicate()
        assert out.strip().isdigit(), (out, err)
        store = Store(root)
        assert store.damage() == []
        assert stored(root) == len(SPECS)
        assert written(store) == undisturbed

    def test_packs_that_are_merged_at_the_same_moment_all_arrive(self, tmp_path, whole, undisturbed):
        for i, spec in enumerate(SPECS):
            export(whole, [spec.spec_id], tmp_path / f"pack {i}")
        code = "import sys; from sparsity_moves.store import Store, merge; merge(Store(sys.argv[1]), sys.argv[2])"
        store = Store(tmp_path / "smoke")
        all_of_them = [python("-c", code, store.root, tmp_path / f"pack {i}") for i in range(len(SPECS))]
        assert [(process.communicate()[1], process.returncode) for process in all_of_them] == [("", 0)] * 5
        assert store.damage() == []
        assert written(store) == undisturbed

    def test_a_claim_is_one_process_s_until_it_ends_however_it_ends(self, tmp_path):
        ids = [spec.spec_id for spec in SPECS]
        code = """
        import sys
        from pathlib import Path
        from sparsity_moves.store.claims import Claims
        claims = Claims(Path(sys.argv[1]))
        print(claims.take(sys.argv[2:]), flush=True)
        sys.stdin.readline()
        """
        process = python("-c", textwrap.dedent(code), tmp_path, *ids[:2], stdin=subprocess.PIPE)
        assert process.stdout.readline() == "True\n"
        claims = Claims(tmp_path)
        assert not claims.take([ids[2], ids[1]]), "all or none"
        assert claims.take(ids[2:])
        process.kill()
        process.communicate()
        assert claims.take(ids[:2])
        claims.close()


class TestFullDisk:
    """It is said in one sentence, and what was stored stays."""

    def test_the_training_stops_and_goes_on_when_there_is_room(self, script, tmp_path, undisturbed):
        """A limit on the size of files stands for the disk where no file system may be mounted."""
        root = tmp_path / "smoke"

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))

        out, err = python(script, root, preexec_fn=limit).communicate(timeout=120)
        assert out.startswith("cannot write "), (out, err)
        assert "File too large; what was stored before is untouched" in out
        assert out.endswith("the same command goes on from there\n")
        assert "Traceback" not in err
        store = Store(root)
        assert store.spec_ids() == []
        assert store.damage() == []
        assert not list((root / "runs").glob(".*.part"))
        assert engine.run(SPECS, store, workers=2, quiet=True) == len(SPECS)
        assert written(store) == undisturbed

    def test_a_merge_leaves_the_old_tables(self, tmp_path, whole, undisturbed):
        ids = [spec.spec_id for spec in SPECS]
        export(whole, ids[:1], tmp_path / "small")
        export(whole, ids, tmp_path / "large")
        store = Store(tmp_path / "smoke")
        merge(store, tmp_path / "small")
        before = {p.name: p.read_bytes() for p in store.root.iterdir()}
        code = """
        import resource, signal, sys
        from sparsity_moves.errors import UserError
        from sparsity_moves.store import Store, merge
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (100, 7_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                merge(Store(sys.argv[1]), sys.argv[2])
            except UserError as error:
                print(error)
        """
        out, err = python("-c", textwrap.dedent(code), store.root, tmp_path / "large").communicate()
        assert err == ""
        assert out.count("File too large; what was stored before is untouched\n") == 2
        assert {p.name: p.read_bytes() for p in store.root.iterdir()} == before
        assert set(merge(store, tmp_path / "large").new) == set(ids[1:])
        assert written(store) == undisturbed


DIVERGED = arm("moe_switch", "smoke", "add7", 1, steps=20, evaluate_every=10, learning_rate=1e20, clip=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where a model that diverged lies beside one that did not."""
    root = tmp_path_factory.mktemp("diverged") / "smoke"
    engine.run([DIVERGED, SPECS[0]], Store(root), quiet=True)
    return root


class TestALossThatIsNoNumber:
    """Divergence is a result: it is stored as what it is, and nothing breaks on it."""

    def test_it_stands_in_the_tables(self, root):
        store = Store(root)
        written(store, (DIVERGED, SPECS[0]))
        curve = store.table("curves.parquet").filter(spec_id=DIVERGED.spec_id)
        assert math.isnan(curve["loss"][-1])
        runs = store.table("runs.parquet").filter(spec_id=DIVERGED.spec_id)
        assert set(runs["moment"]) == {"first_best", "final"}
        assert runs["attention_share"].is_nan().any()
        assert store.damage() == []

    def test_its_neighbours_and_a_second_writing_are_as_ever(self, root):
        store = Store(root)
        first = written(store, (DIVERGED, SPECS[0]))
        assert engine.run([DIVERGED, SPECS[0]], store, quiet=True) == 0
        assert written(store, (DIVERGED, SPECS[0])) == first
        loss = pl.col("loss")
        fine = store.table("curves.parquet").filter(spec_id=SPECS[0].spec_id)
        assert fine.select(loss.is_finite().all()).item()

    def test_it_is_packed_and_merged_and_agrees_with_itself(self, root, tmp_path):
        ids = [DIVERGED.spec_id, SPECS[0].spec_id]
        export(Store(root), ids, tmp_path / "pack", checkpoints=ids)
        store = Store(tmp_path / "smoke")
        assert len(merge(store, tmp_path / "pack").new) == 2
        assert len(merge(Store(root), tmp_path / "pack").there_already) == 2
        assert written(store, (DIVERGED, SPECS[0])) == written(Store(root), (DIVERGED, SPECS[0]))

    def test_no_json_says_nan(self, root):
        store = Store(root)
        written(store, (DIVERGED, SPECS[0]))
        for path in root.rglob("*.json"):
            assert "NaN" not in path.read_text()
