"""Looks that are kept: a run once, a table that is checked, and what the chapters compute from it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from sparsity_moves.errors import UserError
from sparsity_moves.figures import looks as drawn
from sparsity_moves.store import looks as looks_store
from sparsity_moves.store.looks import LOOKS, Looks
from sparsity_moves.store.tables import MANIFEST, Broken
from sparsity_moves.studies import usage
from sparsity_moves.studies.statistics import compare


def settings(seed: int, arm: str = "tree") -> dict:
    return {"arm": arm, "seed": seed}


def rows(*shares: float) -> list[dict]:
    return [{"step": 10 * i, "dead_nodes": share} for i, share in enumerate(shares)]


@pytest.fixture
def kept(tmp_path) -> Looks:
    where = Looks(tmp_path / "looks")
    where.add([(settings(s), rows(0.0, 0.18 + 0.01 * s)) for s in (1, 2, 3)], device="cpu", seconds=1.5)
    where.add(
        [(settings(s, "tree_balanced"), rows(0.0, 0.09 + 0.005 * s)) for s in (1, 2, 3)],
        device="cpu",
        seconds=1,
    )
    return where


def test_nothing_is_there_before_anything_is_added(tmp_path):
    where = Looks(tmp_path / "none")
    assert where.table().is_empty()
    assert where.missing([settings(1)]) == [settings(1)]


def test_a_run_stands_once_with_its_settings_and_circumstances(kept):
    kept.add([(settings(1), rows(0.0, 0.1))], device="cpu", seconds=2.0)
    table = kept.table()
    assert len(table) == 12
    assert table["run"].n_unique() == 6
    assert kept.missing([settings(3), settings(4)]) == [settings(4)]
    (about,) = (r for r in kept.manifest()["runs"].values() if r["settings"] == settings(1))
    assert (about["device"], about["seconds"]) == ("cpu", 2.0)
    assert "torch" in about["packages"]


def test_a_damaged_table_or_manifest_is_told(kept):
    path = kept.root / LOOKS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(Broken, match="does not match"):
        kept.table()
    path.write_bytes(whole)
    (kept.root / MANIFEST).write_text("{}")
    with pytest.raises(Broken, match=r"manifest\.json is missing or damaged"):
        kept.missing([settings(1)])


@pytest.mark.parametrize("killed_at", ["manifest", "place"])
def test_a_writer_that_is_ended_leaves_the_old_looks_or_the_new(kept, monkeypatch, killed_at):
    before = kept.table()

    replace = Path.replace

    def refuse(*_: object) -> None:
        raise UserError("no space")

    def stay(path: Path, to: Path) -> Path:
        return refuse() if path.name == looks_store.NEXT else replace(path, to)

    with monkeypatch.context() as patch:
        if killed_at == "manifest":
            patch.setattr(looks_store, "write_json", refuse)
        else:
            patch.setattr(Path, "replace", stay)
        with pytest.raises(UserError):
            kept.add([(settings(9), rows(0.0, 0.1))], device="cpu", seconds=1)
    assert len(kept.table()) == len(before) + (0 if killed_at == "manifest" else 2)
    kept.add([(settings(10), rows(0.0, 0.1))], device="cpu", seconds=1)
    assert len(kept.table()) == len(before) + (2 if killed_at == "manifest" else 4)
    assert not list(kept.root.glob(".*.next"))


def test_growth_and_cure_are_paired_by_seed(kept):
    node, after = (kept.table().filter(arm=arm) for arm in ("tree", "tree_balanced"))
    grown = drawn.paired(drawn.last(node), drawn.first(node), "dead_nodes", 100)
    assert (grown.mean, grown.n, grown.positive) == (pytest.approx(20), 3, 3)
    cure = drawn.paired(drawn.last(after), drawn.last(node), "dead_nodes", 100)
    assert cure.mean == pytest.approx(-10)
    assert (drawn.sure(grown), drawn.sure(cure)) == (1, -1)
    nothing = drawn.paired(drawn.last(node), drawn.last(node), "dead_nodes")
    assert drawn.sure(nothing) == 0, "no difference is not a difference"
    assert drawn.sure(compare([1.0, 2.0, 3.0])) == 0, "all above zero, and still too few to be sure"


def test_a_figure_has_every_arm_and_looks_that_are_not_there_are_said(kept):
    figure = drawn.over_training(kept.table(), {"dead_nodes": "dead"}, name="x", caption="Used.")
    assert "Tree 0.2, Tree, balanced 0.1" in figure.alt
    assert "every seed (3 each)" in figure.caption
    nothing = drawn.over_training(pl.DataFrame(), {"dead_nodes": "dead"}, name="x", caption="Used.")
    assert "no stored runs yet" in nothing.source


def test_usage_is_trained_once_and_starts_before_training(tmp_path):
    wanted = usage.groups("smoke", ("add7",), 2)[:2]
    where = Looks(tmp_path / "usage")
    assert usage.run(wanted, where) == 4
    assert usage.run(wanted, where) == 0
    table = where.table()
    assert set(table["arm"]) == {"tree", "tree_balanced"}
    assert sorted(set(table["step"])) == [0, 60]
    assert table.filter(step=0)["path_agreement"].null_count() == 4
