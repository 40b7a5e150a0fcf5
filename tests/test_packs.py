"""Tables as a store of their own, and packs: runs computed elsewhere come in whole, checked, and once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import polars as pl
import pytest
import torch

from sparsity_moves.errors import UserError
from sparsity_moves.measures import measure
from sparsity_moves.store import Broken, Store, export, merge
from sparsity_moves.store.files import digest, write_json
from sparsity_moves.studies import Study, arm, engine, tables
from sparsity_moves.training import train

SHORT = {"steps": 4, "evaluate_every": 2}
SPECS = [
    *(arm("moe", "smoke", "add7", seed, **SHORT) for seed in (1, 2, 3)),
    arm("dense", "smoke", "modular_addition", 1, **SHORT),
]
IDS = [spec.spec_id for spec in SPECS]
STUDY = Study("one", tuple((f"arm {i}", spec) for i, spec in enumerate(SPECS)))
TABLES = ("runs.parquet", "curves.parquet")


def write_tables(store: Store) -> dict[str, bytes]:
    store.write_tables(*tables([STUDY], store), {})
    return {name: (store.root / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> Path:
    """A store of directories, two of the add-7 runs trained together, and its tables."""
    store = Store(tmp_path_factory.mktemp("computed") / "smoke")
    engine.run(SPECS, store, stack=2, quiet=True)
    write_tables(store)
    return store.root


@pytest.fixture
def full(computed, tmp_path) -> Store:
    shutil.copytree(computed, tmp_path / "full" / "smoke")
    return Store(tmp_path / "full" / "smoke")


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty one."""
    return Store(tmp_path / "empty" / "smoke")


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")


class TestTablesAlone:
    """What is read of a run does not depend on whether its directory is there."""

    def test_everything_but_parameters_is_read_from_the_tables(self, full):
        before = full.moments(IDS), full.curves(IDS), full.shards(IDS), full.spec_ids()
        shutil.rmtree(full.runs)
        after = full.moments(IDS), full.curves(IDS), full.shards(IDS), full.spec_ids()
        for a, b in zip(before[:2], after[:2], strict=True):
            assert a.equals(b.select(a.columns))
        assert before[2:] == after[2:]
        assert all(full.has(spec) for spec in SPECS)
        assert full.damage() == []
        assert engine.run(SPECS, full, quiet=True) == 0
        with pytest.raises(UserError, match=f"run {IDS[0]} was stored without its parameters"):
            full.checkpoint(IDS[0], "final")

    @pytest.mark.parametrize("gone", [[0], [1, 3], [0, 1, 2, 3]])
    def test_tables_written_anew_are_the_same_bits(self, full, gone):
        before = {name: (full.root / name).read_bytes() for name in (*TABLES, "manifest.json")}
        for i in gone:
            shutil.rmtree(full.runs / IDS[i])
        write_tables(full)
        assert {name: (full.root / name).read_bytes() for name in before} == before

    def test_a_run_that_no_study_asks_for_any_more_stays_in_the_tables_without_a_study(self, full):
        shutil.rmtree(full.runs)
        full.write_tables(*tables([Study("one", STUDY.runs[1:])], full), {})
        assert full.has(SPECS[0])
        assert full.table("runs.parquet").filter(spec_id=IDS[0])["study"].to_list() == [None, None]
        assert full.damage() == []

    def test_wanted_parameters_are_trained_again(self, full):
        before = full.checkpoint(IDS[0], "final")
        shutil.rmtree(full.runs)
        assert engine.run(SPECS[:1], full, moment="final", quiet=True) == 1
        again = full.checkpoint(IDS[0], "final")
        assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
        assert engine.run(SPECS[:1], full, moment="final", quiet=True) == 0

    @pytest.mark.parametrize("name", [*TABLES, "manifest.json"])
    def test_damaged_tables_are_set_aside_and_what_they_held_is_missing(self, full, name):
        shutil.rmtree(full.runs)
        content = bytearray((full.root / name).read_bytes())
        content[len(content) // 2] ^= 1
        (full.root / name).write_bytes(content)
        todo, (said,) = engine.missing(SPECS, full)
        assert todo == SPECS
        assert name in said
        assert "set aside" in said
        assert (full.root / "damaged" / f"{name}.0").read_bytes() == content, "nothing is deleted"

    def test_trained_again_they_come_out_the_same(self, full):
        whole = {name: (full.root / name).read_bytes() for name in TABLES}
        shutil.rmtree(full.runs)
        (full.root / "runs.parquet").write_bytes(b"")
        assert engine.run(SPECS, full, stack=2, quiet=True) == len(SPECS)
        assert write_tables(full) == whole

    def test_the_manifest_accounts_for_every_shard(self, full):
        shards = json.loads((full.root / "manifest.json").read_text())["shards"]
        assert sorted(len(s["runs"]) for s in shards) == [1, 1, 2]
        assert sorted(i for s in shards for i in s["runs"]) == sorted(IDS)
        for shard in shards:
            assert shard["shape"] == next(s for s in SPECS if s.spec_id in shard["runs"]).shape.spec_id
            assert shard["shard_models"] == len(shard["runs"])
            assert shard["shard_seconds"] > 0
            assert {"device", "packages", "peak_bytes"} <= shard.keys()

    def test_a_run_under_settings_that_are_not_its_own_is_found(self, full):
        path = full.root / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["shards"][0]["settings"]["learning_rate"] = 0.5
        path.write_text(json.dumps(manifest | {"sha256": digest(manifest)}))
        assert any("gives run" in sentence for sentence in full.damage())


@pytest.fixture(scope="module")
def trained():
    (run,) = train(SPECS[:1])
    return run, measure([run])[0]


class TestCheckpoints:
    """A run may be stored without parameters, or with only some moments'."""

    def test_a_run_may_be_stored_without(self, store, trained):
        store.save(*trained, {}, checkpoints=())
        assert files(store.runs / IDS[0]) == ["curve.parquet", "moments.parquet", "record.json"]
        assert store.damage() == []
        assert store.moments(IDS[:1])["moment"].to_list() == ["first_best", "final"]
        with pytest.raises(UserError, match="was stored without its parameters"):
            store.checkpoint(IDS[0], "final")

    def test_or_with_some_moments_only(self, store, trained):
        store.save(*trained, {}, checkpoints=("final", "grokked"))
        assert store.kept(IDS[0]) == ["final"]
        assert store.has(SPECS[0], "final")
        assert store.checkpoint(IDS[0], "final").keys() == trained[0].moments["final"].parameters.keys()
        with pytest.raises(UserError, match="has no parameters of 'first_best'; it has final"):
            store.checkpoint(IDS[0], "first_best")

    def test_one_without_gives_way_to_one_with(self, store, trained):
        store.save(*trained, {}, checkpoints=())
        store.save(*trained, {})
        assert store.kept(IDS[0]) == ["final", "first_best"]
        assert store.damage() == []

    def test_the_engine_keeps_what_it_is_told_to(self, store):
        engine.run(SPECS[:1], store, checkpoints=("first_best",), quiet=True)
        assert store.kept(IDS[0]) == ["first_best"]


class TestPacks:
    """A pack is checked as a whole before anything in it is taken."""

    @pytest.fixture
    def pack(self, full, tmp_path) -> Path:
        export(full, IDS, tmp_path / "pack", checkpoints=IDS[:1])
        return tmp_path / "pack"

    def test_a_pack_is_a_few_files(self, pack):
        families = (
            "ablation",
            "attention",
            "attribution",
            "fourier",
            "neurons",
            "patching",
            "probes",
            "progress",
            "routing",
        )
        tables = [*TABLES, *(f"{family}.parquet" for family in families)]  # what these runs are measured for
        assert files(pack) == sorted([*tables, "manifest.json", f"checkpoints/{IDS[0]}.safetensors"])
        assert Store(pack).damage() == []

    def test_what_went_out_comes_in(self, full, store, pack):
        assert set(merge(store, pack).new) == set(IDS)
        assert write_tables(store) == {name: (full.root / name).read_bytes() for name in TABLES}
        assert store.shards(IDS) == full.shards(IDS)
        ours, theirs = store.checkpoint(IDS[0], "final"), full.checkpoint(IDS[0], "final")
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
        assert engine.run(SPECS, store, quiet=True) == 0

    def test_a_second_merge_takes_nothing_and_touches_nothing(self, store, pack):
        merge(store, pack)
        before = {p: p.stat().st_mtime_ns for p in store.root.rglob("*.parquet")}
        taken = merge(store, pack)
        assert (taken.new, set(taken.there_already)) == ((), set(IDS))
        assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*.parquet")} == before

    def test_packs_of_different_days_add_up_in_any_order(self, full, tmp_path):
        export(full, IDS[:2], tmp_path / "monday")
        export(full, IDS[1:], tmp_path / "tuesday")
        found = []
        for i, days in enumerate((("monday", "tuesday"), ("tuesday", "monday"))):
            store = Store(tmp_path / str(i) / "smoke")
            for day in days:
                merge(store, tmp_path / day)
                write_tables(store)
            found.append({n: (store.root / n).read_bytes() for n in (*TABLES, "manifest.json")})
        assert found[0] == found[1]
        assert store.shards(IDS) == full.shards(IDS)

    def test_runs_that_are_here_stay_as_they_are(self, full, store, pack):
        engine.run(SPECS[:1], store, quiet=True)
        taken = merge(store, pack)
        assert (set(taken.new), taken.there_already) == (set(IDS[1:]), (IDS[0],))
        assert store.directories() == IDS[:1]
        assert write_tables(store) == {name: (full.root / name).read_bytes() for name in TABLES}

    def test_parameters_for_runs_that_no_table_holds_yet_bring_the_tables_with_them(self, full, store, pack):
        store.runs.mkdir(parents=True)
        for spec_id in IDS:
            shutil.copytree(full.runs / spec_id, store.runs / spec_id)
            (store.runs / spec_id / "checkpoint.safetensors").unlink()
            record = json.loads((store.runs / spec_id / "record.json").read_text())
            record = {name: value for name, value in record.items() if name != "sha256"}
            del record["files"]["checkpoint.safetensors"]
            write_json(store.runs / spec_id / "record.json", record)
        taken = merge(store, pack)
        assert (taken.new, set(taken.there_already)) == ((), set(IDS))
        assert store.damage() == []
        assert store.table("runs.parquet")["spec_id"].n_unique() == len(IDS)

    def test_tables_whose_manifest_is_lost_are_set_aside(self, full):
        shutil.rmtree(full.runs)
        (full.root / "manifest.json").unlink()
        assert any("runs.parquet is there, but manifest.json" in said for said in full.damage())
        said = full.set_tables_aside()["runs.parquet"]
        assert full.damage() == []
        assert Path(said.rpartition("set aside as ")[2]).exists(), "nothing is thrown away"

    def test_a_whole_store_is_merged_as_a_pack_is(self, full, store):
        for path in (full.root / "manifest.json", *full.root.glob("*.parquet")):
            path.unlink()
        assert set(merge(store, full.root).new) == set(IDS)
        assert store.kept(IDS[3])

    @pytest.mark.parametrize("name", [*TABLES, "manifest.json", f"checkpoints/{IDS[0]}.safetensors"])
    @pytest.mark.parametrize("how", ["missing", "flipped"])
    def test_of_a_damaged_pack_nothing_is_taken(self, store, pack, name, how):
        content = bytearray((pack / name).read_bytes())
        content[len(content) // 2] ^= 1
        (pack / name).unlink() if how == "missing" else (pack / name).write_bytes(content)
        with pytest.raises(UserError, match=Path(name).name):
            merge(store, pack)
        assert store.spec_ids() == []
        assert not list(store.root.glob("*"))

    def test_a_damaged_checkpoint_is_named_and_its_run_trained_again(self, store, pack):
        merge(store, pack)
        path = store.root / "checkpoints" / f"{IDS[0]}.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert path.name in store.damage()[0]
        todo, (said,) = engine.missing(SPECS, store)
        assert todo == SPECS[:1]
        assert path.name in said
        assert store.damage() == []

    def test_a_run_with_other_numbers_is_refused(self, full, store, tmp_path):
        """Whole in itself, but trained by a code or a device that gives other bits."""
        engine.run(SPECS[:1], store, quiet=True)
        runs = full.table("runs.parquet").with_columns(accuracy=pl.col("accuracy") + 1e-9)
        other = Store(tmp_path / "other")
        other.tables.write(runs, full.table("curves.parquet"), full.shards(IDS))
        with pytest.raises(
            UserError, match=rf"run {IDS[0]} has another measures .*1 runs differ.*nothing was taken"
        ):
            merge(store, other.root)
        assert store.spec_ids() == IDS[:1]

    def test_numbers_that_are_no_numbers_agree_with_themselves(self, full, store, tmp_path):
        runs = full.table("runs.parquet").with_columns(attention_share=pl.lit(float("nan")))
        curves = full.table("curves.parquet").with_columns(loss=pl.lit(float("nan")))
        for name in ("a", "b"):
            Store(tmp_path / name).tables.write(runs, curves, full.shards(IDS))
        assert len(merge(store, tmp_path / "a").new) == len(IDS)
        assert len(merge(store, tmp_path / "b").there_already) == len(IDS)
        assert store.moments(IDS)["attention_share"].is_nan().all()

    def test_a_folder_that_is_no_pack_is_refused(self, store, tmp_path):
        with pytest.raises(UserError, match=r"there are no stored runs in .*nowhere"):
            merge(store, tmp_path / "nowhere")

    def test_a_damaged_run_is_not_packed(self, full, tmp_path):
        (full.runs / IDS[0] / "curve.parquet").write_bytes(b"")
        with pytest.raises(Broken, match=r"curve\.parquet is missing or damaged"):
            export(full, IDS, tmp_path / "pack")


KILLED = """
import os, signal, sys
import sparsity_moves.store.files as files, sparsity_moves.store.tables as tables_
from sparsity_moves.store import Store, merge
n = 0
def count(real):
    def counted(*arguments):
        global n
        if n == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        n += 1
        return real(*arguments)
    return counted
files.sync = count(files.sync)
tables_.Path.replace = count(tables_.Path.replace)
merge(Store(sys.argv[1]), sys.argv[2])
print(n)
"""


def test_killed_at_any_moment_the_tables_are_the_old_or_the_new_ones(full, tmp_path):
    """There are no directories to write them from again: whole tables must survive every kill."""
    export(full, IDS[:2], tmp_path / "monday")
    export(full, IDS[2:], tmp_path / "tuesday")
    kills = 0
    outcomes = set()
    while True:
        store = Store(tmp_path / str(kills) / "smoke")
        merge(store, tmp_path / "monday")
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), store.root, tmp_path / "tuesday", str(kills)],
            capture_output=True, text=True,
        )  # fmt: skip
        again = Store(store.root)
        assert again.damage() == []
        assert set(again.spec_ids()) in (set(IDS), set(IDS[:2]))
        outcomes.add(len(again.spec_ids()))
        merge(again, tmp_path / "tuesday")
        assert write_tables(again) == {name: (full.root / name).read_bytes() for name in TABLES}
        assert not list(again.root.glob(".*.next"))
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        kills += 1
    assert kills > 8
    assert outcomes == {2, 4}
