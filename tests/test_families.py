"""Families of measures on their way: from the trained fleet to a run's files, into the tables, and back when lost."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from sparsity_moves.errors import UserError
from sparsity_moves.figures.reference import FAMILIES as WORDS
from sparsity_moves.measures import measure_families
from sparsity_moves.measures.families import MEASURES
from sparsity_moves.names import FAMILIES
from sparsity_moves.store import Broken, Store, export, families, measured, merge
from sparsity_moves.store.run_files import recorded
from sparsity_moves.studies import Study, arm, engine, measures, measuring, tables
from sparsity_moves.studies.engine.planning import trained_meanwhile
from sparsity_moves.studies.measuring import CHEAP, fill, lacking, wanted
from sparsity_moves.training import train

SHORT = {"steps": 4, "evaluate_every": 2}
SPECS = [
    arm("moe_glu", "smoke", "modular_addition", 1, **SHORT),
    arm("moe", "smoke", "add7", 1, **SHORT),
    arm("moe", "smoke", "add7", 2, **SHORT),
    arm("dense", "smoke", "histogram", 1, **SHORT),
]
STUDY = Study("one", tuple((f"arm {i}", spec) for i, spec in enumerate(SPECS)))
IDS = [spec.spec_id for spec in SPECS]


def write_tables(store: Store) -> None:
    store.write_tables(*tables([STUDY], store), {})


def everything(store: Store) -> dict[str, pl.DataFrame]:
    return dict(measured.every(store, IDS))


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> Path:
    """A store of directories with all their measures, and its tables."""
    store = Store(tmp_path_factory.mktemp("computed") / "smoke")
    engine.run(SPECS, store, quiet=True)
    write_tables(store)
    return store.root


@pytest.fixture
def full(computed, tmp_path) -> Store:
    shutil.copytree(computed, tmp_path / "full" / "smoke")
    return Store(tmp_path / "full" / "smoke")


@pytest.fixture
def old(full) -> Store:
    """As a store was before there were families: directories and tables without a trace of them."""
    for spec_id in IDS:
        record = full.record(spec_id)
        kept = {n: (full.runs / spec_id / n).read_bytes() for n in record["files"] if n not in families.FILES}
        shutil.rmtree(full.runs / spec_id)
        full.put(spec_id, recorded(record, kept))
    for name in families.FILES:
        (full.root / name).unlink(missing_ok=True)
    runs, curves = full.table("runs.parquet"), full.table("curves.parquet")
    full.tables.write(runs, curves, full.tables.shards(), measures={})
    return full


class TestStored:
    def test_a_run_has_what_is_wanted_of_it(self, computed):
        store = Store(computed)
        there = measured.there(store, (spec.spec_id for spec in SPECS))
        for spec in SPECS:
            assert set(there[spec.spec_id]) == set(wanted(spec))
            moments = set(store.moments([spec.spec_id])["moment"])
            assert all(own == moments for own in there[spec.spec_id].values())
            names = {p.name for p in (store.runs / spec.spec_id).iterdir()}
            assert {n for n in names if n in families.FILES} == {families.file_name(f) for f in wanted(spec)}
        assert lacking(SPECS, store) == {}

    def test_the_tables_hold_every_moment_of_every_run_under_their_columns(self, computed):
        store = Store(computed)
        moments = set(store.table("runs.parquet").select("spec_id", "moment").iter_rows())
        for family in FAMILIES:
            table = store.table(families.file_name(family))
            assert dict(table.schema) == {
                n: t if isinstance(t, pl.DataType) else t() for n, t in families.schema(family).items()
            }
            of = {spec.spec_id for spec in SPECS if family in wanted(spec)}
            assert set(table.select("spec_id", "moment").iter_rows()) == {k for k in moments if k[0] in of}
        assert store.damage() == []

    def test_rows_are_those_that_were_measured(self, computed):
        runs = train(SPECS[1:3])
        found = measure_families(runs, [wanted(run.spec) for run in runs])
        for run, own in zip(runs, found, strict=True):
            for family, columns in own.items():
                stored = measured.rows(Store(computed), family, [run.spec.spec_id])
                assert stored.equals(families.table(family, run.spec.spec_id, columns))

    def test_a_study_has_its_arms_beside_them(self, computed):
        found = measures(STUDY, Store(computed), "patching")
        assert set(found["arm"]) == {"arm 1", "arm 2"}
        assert set(found.select("task", "seed").iter_rows()) == {("add7", 1), ("add7", 2)}

    def test_they_are_read_from_the_tables_where_there_is_no_directory(self, full):
        before = everything(full)
        shutil.rmtree(full.runs)
        after = everything(full)
        assert all(after[f].equals(before[f]) for f in FAMILIES)
        write_tables(full)
        assert all(full.tables.family(f).sort(pl.all()).equals(before[f].sort(pl.all())) for f in FAMILIES)

    def test_a_column_that_a_table_does_not_have_is_no_measure(self):
        with pytest.raises(ValueError, match="the table of probes has no column size"):
            families.table("probes", "0", {"moment": ["final"], "size": [1]})

    def test_every_family_and_column_has_a_measure_and_a_meaning(self):
        assert tuple(MEASURES) == FAMILIES == tuple(families.SCHEMAS)
        assert {f: set(words) for f, words in WORDS.items()} == {f: set(families.schema(f)) for f in FAMILIES}


class TestMissing:
    """A run without a family contributes no rows, and is known to lack it."""

    def test_an_old_store_is_whole_and_lacks_them_all(self, old):
        assert old.damage() == []
        assert engine.run(SPECS, old, quiet=True) == 0, "nothing is trained for measures unless asked"
        assert lacking(SPECS, old) == {spec: wanted(spec) for spec in SPECS}
        assert all(frame.is_empty() for frame in everything(old).values())
        assert old.table("ablation.parquet").is_empty()
        write_tables(old)
        assert not [p for p in old.root.glob("*.parquet") if p.name in families.FILES]

    def test_they_are_measured_from_parameters_to_the_same_bits(self, old, computed):
        assert fill(SPECS, old) == (len(SPECS), [])
        assert lacking(SPECS, old) == {}
        assert old.damage() == []
        write_tables(old)
        for family in FAMILIES:
            name = families.file_name(family)
            assert (old.root / name).read_bytes() == (computed / name).read_bytes()
        assert fill(SPECS, old) == (0, [])

    def test_those_of_a_pack_with_parameters_are_added_to_its_tables(self, old, computed, tmp_path):
        export(old, IDS, tmp_path / "pack", checkpoints=IDS)
        pack = Store(tmp_path / "pack")
        assert fill(SPECS, pack) == (len(SPECS), [])
        expected = everything(Store(computed))
        assert all(found.equals(expected[f]) for f, found in everything(pack).items())
        assert pack.damage() == []

    def test_without_parameters_they_are_trained_again_where_that_is_asked(self, old, computed):
        shutil.rmtree(old.runs)
        assert fill(SPECS, old) == (0, SPECS)
        assert engine.run(SPECS[1:3], old, measured=True, quiet=True) == 2
        assert lacking(SPECS, old) == {spec: wanted(spec) for spec in (SPECS[0], SPECS[3])}
        expected = measured.rows(Store(computed), "probes", IDS)
        assert measured.rows(old, "probes", IDS).equals(expected)
        assert engine.run(SPECS[1:3], old, measured=True, quiet=True) == 0
        assert trained_meanwhile(SPECS[1], old, None, measured=True)
        assert not trained_meanwhile(SPECS[0], old, None, measured=True)

    def test_a_merge_adds_them_to_runs_that_lack_them(self, old, computed, tmp_path):
        export(Store(computed), IDS, tmp_path / "pack")
        taken = merge(old, tmp_path / "pack")
        assert (taken.new, set(taken.there_already)) == ((), set(IDS))
        assert lacking(SPECS, old) == {}
        write_tables(old)
        assert all(found.equals(everything(Store(computed))[f]) for f, found in everything(old).items())
        before = {p.name: p.stat().st_mtime_ns for p in old.root.glob("*.parquet")}
        merge(old, tmp_path / "pack")
        assert {p.name: p.stat().st_mtime_ns for p in old.root.glob("*.parquet")} == before

    def test_a_merge_of_an_old_pack_takes_its_runs(self, old, tmp_path):
        export(old, IDS, tmp_path / "pack")
        store = Store(tmp_path / "new" / "smoke")
        assert set(merge(store, tmp_path / "pack").new) == set(IDS)
        assert store.damage() == []
        assert lacking(SPECS, store).keys() == set(SPECS)

    def test_other_measures_of_the_same_run_are_refused(self, full, computed, tmp_path):
        shutil.rmtree(full.runs)
        export(full, IDS, tmp_path / "pack")
        pack = Store(tmp_path / "pack")
        changed = {f: pack.tables.family(f) for f in FAMILIES}
        changed["probes"] = changed["probes"].with_columns(pl.col("accuracy") + 0.25)
        pack.tables.write(
            pack.table("runs.parquet"), pack.table("curves.parquet"), pack.tables.shards(), measures=changed
        )
        with pytest.raises(UserError, match="has another table of probes in"):
            merge(Store(computed), tmp_path / "pack")

    @pytest.mark.parametrize("how", ["gone", "flipped"])
    def test_a_damaged_table_is_named_set_aside_and_missing(self, full, how):
        shutil.rmtree(full.runs)
        path = full.root / "probes.parquet"
        content = path.read_bytes()
        path.unlink()
        if how == "flipped":
            path.write_bytes(b"X" + content[1:])
        with pytest.raises(Broken, match=r"probes\.parquet"):
            full.table("probes.parquet")
        todo, (said,) = engine.missing(SPECS, full)
        assert todo == []
        assert "probes.parquet" in said
        assert full.damage() == []
        assert lacking(SPECS, full) == dict.fromkeys(SPECS[1:3], ("probes",))

    def test_a_table_that_speaks_of_runs_that_are_not_there_is_damage(self, full):
        frames = {f: full.tables.family(f) for f in FAMILIES}
        frames["probes"] = frames["probes"].with_columns(spec_id=pl.lit("0" * 16))
        runs, curves = full.table("runs.parquet"), full.table("curves.parquet")
        full.tables.write(runs, curves, full.tables.shards(), measures=frames)
        (sentence,) = full.tables.damage().values()
        assert r"probes.parquet speaks of runs that manifest.json does not" in sentence


class TestWanted:
    """A function of the spec alone."""

    def test_at_full_scale_arms_have_everything_and_points_of_sweeps_what_is_cheap(self):
        own = arm("moe", "paper", "add7", 7)
        assert wanted(own) == ("ablation", "attention", "attribution", "patching", "probes", "routing")
        for changed in ({"weight_decay": 0.1}, {"norm": "rms"}, {"beta2": 0.98}):
            assert wanted(replace(own, **changed)) == CHEAP
        assert wanted(arm("narrow", "paper", "add7", 7, weight_decay=0.1)) == ("ablation",)

    def test_trees_have_what_is_asked_of_a_layer_without_experts(self):
        assert wanted(arm("tree", "paper", "add7", 7)) == (
            "ablation",
            "attention",
            "attribution",
            "patching",
            "probes",
        )

    def test_neurons_have_rows_in_two_seeds(self):
        with_rows = [
            s for s in (42, 137, 256, 0) if "neurons" in wanted(arm("glu", "paper", "modular_addition", s))
        ]
        assert with_rows == list(measuring.NEURONS) == [42, 137]
        assert "fourier" in wanted(arm("glu", "paper", "modular_addition", 256))

    def test_small_profiles_have_everything_whatever_is_set(self):
        assert wanted(arm("moe", "laptop", "histogram", 3, experts=8)) == (
            "ablation",
            "attention",
            "attribution",
            "routing",
            "strategy",
        )


@pytest.mark.parametrize(
    ("task", "name", "more"),
    [
        ("add7", "moe_switch", {}),
        ("modular_addition", "moe_glu", {"norm": "rms"}),
        ("histogram", "moe_top2", {"depth": 2}),
        ("modular_addition", "tree", {}),
    ],
)
def test_a_run_is_measured_the_same_whatever_stands_beside_it(task, name, more):
    """Bit by bit, on a CPU."""
    runs = train([arm(name, "smoke", task, seed, **SHORT, **more) for seed in (1, 2, 3)])
    together = measure_families(runs, [FAMILIES] * 3)
    alone = measure_families(runs[1:2], [FAMILIES])
    other = measure_families([runs[2], runs[0]], [FAMILIES] * 2)
    assert together[1] == alone[0]
    assert [together[2], together[0]] == other


def test_memory_is_bounded_by_measuring_few_at_a_time(monkeypatch):
    """And the numbers are the same."""
    from sparsity_moves.measures import families as module
    from sparsity_moves.measures.together import ROOM

    runs = train([arm("glu", "smoke", "add7", seed, **SHORT) for seed in (1, 2, 3)])
    whole = measure_families(runs, [("ablation", "patching")] * 3)
    sizes = []
    real = module.MEASURES["ablation"]
    monkeypatch.setitem(module.MEASURES, "ablation", lambda s: sizes.append(len(s.seeds)) or real(s))
    monkeypatch.setitem(ROOM, "cpu", 4 * 100 * 4 * 128)
    assert measure_families(runs, [("ablation", "patching")] * 3) == whole
    assert sizes == [4, 2]


class TestSomeMoments:
    """Parameters were kept of one moment alone: its rows are there at once, the others when it is trained again."""

    @pytest.fixture
    def partly(self, tmp_path) -> Store:
        store = Store(tmp_path / "partly" / "smoke")
        engine.run(SPECS, store, checkpoints=("final",), quiet=True)
        for spec_id in IDS:
            record = store.record(spec_id)
            files = {
                n: (store.runs / spec_id / n).read_bytes() for n in record["files"] if n not in families.FILES
            }
            shutil.rmtree(store.runs / spec_id)
            store.put(spec_id, recorded(record, files))
        return store

    @pytest.fixture(params=["directories", "tables"])
    def either(self, request, partly, tmp_path) -> Store:
        if request.param == "directories":
            return partly
        export(partly, IDS, tmp_path / "pack" / "smoke", checkpoints=IDS)
        return Store(tmp_path / "pack" / "smoke")

    def test_they_have_the_rows_of_that_moment_and_are_known_to_lack_the_rest(self, either, computed):
        several = {s for s in SPECS if either.moments([s.spec_id])["moment"].n_unique() > 1}
        assert several, "or nothing is tested"
        done, left = fill(SPECS, either)
        assert (done, set(left)) == (len(SPECS), several)
        whole = Store(computed)
        for family in FAMILIES:
            expected = measured.rows(whole, family, IDS).filter(moment="final")
            assert measured.rows(either, family, IDS).equals(expected)
        assert set(lacking(SPECS, either)) == several
        assert either.damage() == []

    def test_measuring_them_twice_changes_nothing(self, either):
        fill(SPECS, either)
        before = everything(either)
        done, left = fill(SPECS, either)
        assert done == 0
        assert left
        assert all(before[f].equals(table) for f, table in everything(either).items())

    def test_trained_again_they_have_all(self, either, computed):
        fill(SPECS, either)
        engine.run(SPECS, either, quiet=True, measured=True)
        assert lacking(SPECS, either) == {}
        for family, table in everything(Store(computed)).items():
            assert everything(either)[family].equals(table), family

    def test_a_merge_puts_whole_measures_in_their_place_even_other_bits(self, partly, computed, tmp_path):
        """Parameters are measured here on a CPU, and trained again elsewhere on a GPU."""
        export(partly, IDS, tmp_path / "here" / "smoke", checkpoints=IDS)
        here, there = Store(tmp_path / "here" / "smoke"), Store(tmp_path / "there" / "smoke")
        fill(SPECS, here)
        export(Store(computed), IDS, there.root)
        table = there.tables.family("patching").with_columns(pl.col("flip_rate") / 2)
        frames = {f: there.tables.family(f) for f in FAMILIES} | {"patching": table}
        there.tables.write(
            there.table("runs.parquet"), there.table("curves.parquet"), there.tables.shards(), measures=frames
        )
        merge(here, there.root)
        assert here.damage() == []
        several = {i for i in IDS if here.moments([i])["moment"].n_unique() > 1}
        chosen = pl.col("spec_id").is_in(list(several))
        assert (
            measured.rows(here, "patching", IDS)
            .filter(chosen)
            .equals(measured.rows(there, "patching", IDS).filter(chosen))
        )
        assert lacking(SPECS, here) == {}
