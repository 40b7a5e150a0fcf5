"""The store: what was stored comes back whole, or it is said which file is damaged; a writer that dies or finds the
disk full loses nothing that was there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import torch

from sparsity_moves.errors import UserError
from sparsity_moves.measures import measure
from sparsity_moves.store import Broken, Store
from sparsity_moves.store import store as module
from sparsity_moves.studies import Study, arm, engine, results, tables
from sparsity_moves.training import Run, Spec, train

FILES = ("moments.parquet", "curve.parquet", "checkpoint.safetensors", "record.json")
CIRCUMSTANCES = {"device": "cpu", "shard_models": 1, "shard_seconds": 1.0, "peak_bytes": None}


def short(name: str = "moe", task: str = "add7", seed: int = 1, **more) -> Spec:
    return arm(name, "smoke", task, seed, **{"steps": 6, "evaluate_every": 3, **more})


@pytest.fixture(scope="module")
def trained() -> tuple[Run, list]:
    (run,) = train([short()])
    return run, measure([run])[0]


@pytest.fixture
def store(tmp_path, trained) -> Store:
    """A store with one run."""
    where = Store(tmp_path / "smoke")
    where.save(*trained, CIRCUMSTANCES)
    return where


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


# --- Round trip -----------------------------------------------------------------------------------------------------


def test_everything_comes_back(store, trained):
    run, rows = trained
    spec_id = run.spec.spec_id
    assert store.spec_ids() == [spec_id]
    assert store.has(run.spec)
    moments = store.moments([spec_id])
    assert moments.select(list(rows[0])).rows() == [tuple(row.values()) for row in rows]
    stored = {name: moments[name][0] for name in dataclasses.asdict(run.spec)}
    assert stored == dataclasses.asdict(run.spec)
    assert store.curves([spec_id]).drop("spec_id").to_dict(as_series=False) == run.curve
    for name, moment in run.moments.items():
        tensors = store.checkpoint(spec_id, name)
        assert tensors.keys() == moment.parameters.keys()
        assert all(
            torch.equal(tensors[n], t) and tensors[n].dtype == t.dtype for n, t in moment.parameters.items()
        )
    assert store.damage() == []


def test_a_hash_routers_table_comes_back_as_integers(tmp_path):
    (run,) = train([short("moe_hash_context")])
    store = Store(tmp_path)
    store.save(run, measure([run])[0], CIRCUMSTANCES)
    assert store.checkpoint(run.spec.spec_id, "final")["0.ffn.hash"].dtype == torch.int64


def test_a_run_is_nothing_but_tables_tensors_and_json(store, trained):
    """No pickle: nothing in the store can run code when it is opened."""
    directory = store.runs / trained[0].spec.spec_id
    assert sorted(p.name for p in directory.iterdir()) == sorted(FILES)
    starts = {".parquet": b"PAR1", ".json": b"{"}
    for path in directory.iterdir():
        content = path.read_bytes()
        assert content.startswith(starts.get(path.suffix, content[:8]))
    header = (directory / "checkpoint.safetensors").read_bytes()
    assert isinstance(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")]), dict)
    source = "".join(p.read_text() for p in Path(sys.modules["sparsity_moves"].__file__).parent.rglob("*.py"))
    assert "import pickle" not in source
    assert "torch.load" not in source


def test_saving_again_changes_nothing(store, trained):
    before = contents(store.root)
    store.save(*trained, CIRCUMSTANCES | {"shard_seconds": 2.0})
    assert contents(store.root) == before


def test_a_moment_that_is_not_there_is_refused(store, trained):
    with pytest.raises(UserError, match=r"has no parameters of 'grokked'; it has final, first_best"):
        store.checkpoint(trained[0].spec.spec_id, "grokked")


# --- Addresses ------------------------------------------------------------------------------------------------------

CHANGED = {
    "frozen": "attention",
    "precision": "tf32",
    "train_below": 3,
    "dropout": 0.1,
    "dropout_at": "hidden",
    "profile": "laptop", "seed": 2, "d_model": 64, "heads": 2, "depth": 2, "norm": "rms", "width": 128, "experts": 2,
    "top_k": 2, "router": "frozen", "gate": "switch", "gated": True, "activation": "relu", "steps": 7, "batch": 5,
    "pool": 3, "redraw_every": 2, "learning_rate": 2e-3, "decay": 2, "warm_up": 3, "weight_decay": 0.5, "beta1": 0.8,
    "beta2": 0.98, "clip": 2.0, "balance_weight": 0.5, "balance_positions": "read_out", "evaluate_every": 4,
    "evaluation": 9, "probe": 8, "digits": 3, "addend": 5, "tree_depth": 1, "always_on": 15, "nonlinearity": "sum",
}  # fmt: skip
FOREIGN = {"modulus": 11, "train_fraction": 0.7, "alphabet": 9, "symbols": 4, "task": "histogram"}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Spec)])
def test_every_setting_is_part_of_the_address(field):
    """A setting added to Spec must be added here: the test fails until it is seen to change the address."""
    if field in CHANGED:
        of_trees = field in ("tree_depth", "always_on", "nonlinearity")
        spec, value = short("tree" if of_trees else "moe"), CHANGED[field]
    else:
        spec = short(task="modular_addition" if field in ("modulus", "train_fraction") else "histogram")
        value = FOREIGN[field]
    if field == "task":
        other = short(task="histogram")
        spec = short()
    else:
        other = dataclasses.replace(spec, **{field: value})
    assert getattr(other, field) != getattr(spec, field), "the value above is no change"
    assert other.spec_id != spec.spec_id


def test_the_address_is_the_same_in_every_process_and_for_equal_specs():
    assert short().spec_id == short().spec_id
    code = "from sparsity_moves.studies import arm; "
    code += "print(arm('moe', 'smoke', 'add7', 1, steps=6, evaluate_every=3).spec_id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == short().spec_id


# --- Damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found_and_the_file_named(store, trained, name, where):
    path = store.runs / trained[0].spec.spec_id / name
    content = bytearray(path.read_bytes())
    at = {"first": 0, "middle": len(content) // 2, "last": len(content.rstrip()) - 1}[where]
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(Broken, match=name):
        store.record(trained[0].spec.spec_id)
    (sentence,) = store.damage()
    assert name in sentence
    assert "damaged" in sentence


@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_found_and_named(store, trained, name, how):
    path = store.runs / trained[0].spec.spec_id / name
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(content[: 0 if how == "empty" else -1 if name != "record.json" else -9])
    with pytest.raises(Broken, match=name):
        store.record(trained[0].spec.spec_id)


@pytest.mark.parametrize("text", ["[]", "null", '{"sha256": 1}', "{}", "\x00", "[" * 100_000])
def test_a_record_that_is_no_record_is_damage(store, trained, text):
    (store.runs / trained[0].spec.spec_id / "record.json").write_text(text)
    with pytest.raises(Broken, match=r"record\.json is missing or damaged"):
        store.record(trained[0].spec.spec_id)


def test_a_run_under_another_runs_address_is_damage(store, trained):
    """Copied by hand, or renamed: whole in itself, but not what its address says."""
    other = short(seed=2)
    shutil.copytree(store.runs / trained[0].spec.spec_id, store.runs / other.spec_id)
    with pytest.raises(Broken, match=other.spec_id):
        store.record(other.spec_id)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_run_is_set_aside_and_trained_again(store, trained, name):
    spec = trained[0].spec
    before = contents(store.runs)
    path = store.runs / spec.spec_id / name
    path.write_bytes(b"x" + path.read_bytes()[1:]) if name != "record.json" else path.unlink()
    todo, said = engine.missing([spec], store)
    assert todo == [spec]
    assert len(said) == 1
    assert "set aside" in said[0]
    assert not store.has(spec)
    assert len(list((store.root / "damaged").iterdir())) == 1, "nothing is deleted"
    store.save(*trained, CIRCUMSTANCES)
    assert contents(store.runs) == before
    assert engine.missing([spec], store) == ([], [])


def test_two_damaged_copies_of_a_run_are_both_kept(store, trained):
    for _ in range(2):
        (store.runs / trained[0].spec.spec_id / "record.json").write_text("")
        store.set_aside(trained[0].spec.spec_id)
        store.save(*trained, CIRCUMSTANCES)
    assert len(list((store.root / "damaged").iterdir())) == 2


# --- Tables ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_tables(store, trained) -> Store:
    store.write_tables(*tables([Study("one", (("moe", trained[0].spec),))], store), {})
    return store


def test_tables_come_back(with_tables):
    assert with_tables.table("runs.parquet")["moment"].to_list() == ["first_best", "final"]
    assert with_tables.table("curves.parquet")["step"].to_list() == [3, 6]
    assert with_tables.damage() == []


@pytest.mark.parametrize("name", ["runs.parquet", "curves.parquet", "manifest.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "flipped"])
def test_a_damaged_or_missing_table_stops_with_one_sentence(with_tables, name, how):
    path = with_tables.root / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        content[0] ^= 0x80
        path.write_bytes(content)
    asked = "runs.parquet" if name == "manifest.json" else name
    with pytest.raises(Broken) as refusal:
        with_tables.table(asked)
    sentence = str(refusal.value)
    assert name in sentence
    assert "sparsity-moves train --profile smoke" in sentence, "it says how to get it back"
    assert "\n" not in sentence
    assert any(name in found for found in with_tables.damage()) or name == "manifest.json"


def test_runs_from_tables_older_than_a_setting_have_its_default(with_tables, trained):
    """Their address says so: it leaves defaults out."""
    study = Study("one", (("moe", trained[0].spec),))
    before = results(study, with_tables).moments
    old = with_tables.table("runs.parquet").drop("dropout", "dropout_at")
    with_tables.write_tables(old, with_tables.table("curves.parquet"), {})
    shutil.rmtree(with_tables.runs)
    assert with_tables.damage() == []
    assert results(study, with_tables).moments.equals(
        before.select(results(study, with_tables).moments.columns)
    )
    assert tables([study], with_tables)[0]["dropout"].to_list() == [0.0, 0.0]


# --- Writers that die, race or find no room -------------------------------------------------------------------------


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True
    )


MAKE = """
import os, sys
import sparsity_moves.store.store as module
from pathlib import Path
from sparsity_moves.errors import UserError
from sparsity_moves.store import Store
from sparsity_moves.studies import arm
from sparsity_moves.training import Run, Moment
spec = arm("moe", "smoke", "add7", int(sys.argv[2]), steps=6, evaluate_every=3)
start = spec.architecture.initialise(spec.seed)
run = Run(spec, {"step": [3], "loss": [1.0]}, {"final": Moment(6, start)})
store = Store(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("killed_at", [0, 3])
def test_a_writer_killed_on_the_way_leaves_nothing_under_the_runs_name(store, killed_at):
    """Killed by force before the n-th file is sure to be on the disk; the next start sweeps up what it left."""
    before = contents(store.runs)
    done = python(
        MAKE
        + """
import signal
n = 0
real = module.sync
def sync(path):
    global n
    if n == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    n += 1
    real(path)
module.sync = sync
store.save(run, [{"moment": "final"}], {})
""",
        store.root, 9, killed_at,
    )  # fmt: skip
    assert done.returncode == -9
    assert store.spec_ids() == [short().spec_id]
    assert len(list(store.runs.iterdir())) == 2, "the killed writer left its part"
    store.sweep()
    assert contents(store.runs) == before
    assert len(list(store.runs.iterdir())) == 1


@contextmanager
def swept_meanwhile(monkeypatch, module, root: Path):
    """Another sweeps once the first thing written is about to be synced, and is done after the writer is."""
    sweeper = threading.Thread(target=Store(root).sweep)

    def sync(path: Path) -> None:
        if sweeper.ident is None:
            sweeper.start()
            sweeper.join(0.3)
            assert sweeper.is_alive()
        assert path.exists()

    monkeypatch.setattr(module, "sync", sync)
    yield
    sweeper.join(60)
    assert not sweeper.is_alive()


def test_the_part_of_a_writer_that_is_alive_is_not_swept(store, trained, monkeypatch):
    """Who sweeps while a run is written waits until it is in place."""
    run, rows = trained
    shutil.rmtree(store.runs / run.spec.spec_id)
    with swept_meanwhile(monkeypatch, module, store.root):
        store.save(run, rows, CIRCUMSTANCES)
    assert [p.name for p in store.runs.iterdir()] == [run.spec.spec_id]
    assert store.damage() == []


def test_a_dead_writers_part_is_swept_though_another_process_has_its_number_by_now(store):
    part = store.runs / f".abc.{os.getpid()}.part"
    part.mkdir()
    store.sweep()
    assert not part.exists()


def test_a_sweep_with_nothing_to_do_writes_nothing(tmp_path):
    Store(tmp_path / "none").sweep()
    assert not (tmp_path / "none").exists()


def test_a_dead_writers_part_under_our_own_number_is_no_obstacle(store, trained):
    """In a container every process may have the number that another had."""
    run, rows = trained
    (store.runs / f".{run.spec.spec_id}.{os.getpid()}.part").mkdir()
    shutil.rmtree(store.runs / run.spec.spec_id)
    store.save(run, rows, CIRCUMSTANCES)
    assert store.damage() == []


def test_two_processes_may_save_the_same_run_at_once(tmp_path):
    """Both are told to go at the same moment; neither fails, and one whole run is there."""
    code = (
        MAKE
        + """
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    store.save(run, [{"moment": "final"}], {})
    if sys.argv[3] == "clears":
        try:
            store.set_aside(spec.spec_id)
        except UserError:
            pass
print("done")
"""
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), "9", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for role in ("clears", "saves")
    ]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in both] == ["done\n", "done\n"]
    assert Store(tmp_path).damage() == []


def test_losing_the_race_is_no_error(store, trained, monkeypatch):
    """The other writer's run appears at the last moment, just before our rename."""
    run, rows = trained
    before = contents(store.runs)
    hidden = store.runs.rename(store.root / "hidden")
    real = Path.rename

    def rename(part, target):
        shutil.copytree(hidden / run.spec.spec_id, target)
        return real(part, target)

    monkeypatch.setattr(Path, "rename", rename)
    store.save(run, rows, CIRCUMSTANCES | {"shard_seconds": 9.0})
    assert contents(store.runs) == before


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        store.save(run, [{"moment": "final"}], {})
    except UserError as error:
        print(error)
"""


def test_a_disk_that_refuses_is_one_sentence_and_loses_nothing(store):
    """Wherever the limit falls: before, in the midst of, or between the files."""
    before = contents(store.root)
    limits = (0, 100, 1_000, 2_000, 20_000)
    done = python(MAKE + LIMITED, store.root, 9, *limits)
    assert done.returncode == 0, done.stderr
    sentences = done.stdout.splitlines()
    assert len(sentences) == len(limits)
    for sentence in sentences:
        assert sentence.startswith("cannot write ")
        assert sentence.endswith("File too large; what was stored before is untouched")
    assert done.stderr == ""
    assert contents(store.root) == before
    assert store.damage() == []


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 16 kB, where we may make one."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(where)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("no right to mount a file system here")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_is_called_full(tiny_disk):
    done = python(MAKE + LIMITED, tiny_disk, 9, -1)
    assert done.stderr == ""
    assert "there is no space left on the disk; what was stored before is untouched" in done.stdout
    assert list((tiny_disk / "runs").iterdir()) == []


def test_a_table_that_cannot_be_written_leaves_the_old_one(with_tables):
    before = contents(with_tables.root)
    done = python(
        """
import resource, signal, sys
from pathlib import Path
import polars as pl
from sparsity_moves.errors import UserError
from sparsity_moves.store import Store
store = Store(Path(sys.argv[1]))
frame = pl.DataFrame({"spec_id": [str(i) for i in range(50_000)]})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    store.write_tables(frame, frame, {})
except UserError as error:
    print(error)
    sys.exit(2)
""",
        with_tables.root,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("\n") == 1
    assert contents(with_tables.root) == before
    assert with_tables.damage() == []


def test_a_place_that_cannot_be_made_is_one_sentence(tmp_path, trained):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*Not a directory"):
        Store(tmp_path / "file" / "smoke").save(*trained, CIRCUMSTANCES)


def test_tables_of_one_task_alone_have_its_columns(with_tables):
    """Settings that no run has are there, and empty."""
    runs = with_tables.table("runs.parquet")
    assert {f.name for f in dataclasses.fields(Spec)} <= set(runs.columns)
    assert runs["modulus"].null_count() == len(runs)
    assert isinstance(runs["no_ffn_accuracy"].dtype, pl.Float64)
