"""The programs that the benchmark compares do the same work: equal weights and batches give equal losses."""

import importlib.util
import json
import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from peers import fleet, plain, vmap
from peers.work import Problem, Work, work

STEPS = 8
PROBLEMS = [Problem("add7", arm) for arm in ("dense", "glu", "moe", "moe_glu")]
PROBLEMS += [Problem("modular_addition", "moe", "smoke")]  # untied, GELU, both ways, the whole pool


def agree(given: Work, losses) -> None:
    ours = fleet.fleet(given.part(0, 3), "cpu")()
    assert losses.shape[0] == STEPS
    off = (losses - ours[:, : losses.shape[1]]).abs() / ours[:, : losses.shape[1]]
    assert off.max() < 1e-4, f"largest relative difference of a step's loss: {off.max():.1e}"
    assert ours[-1].mean() < ours[0].mean()


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_plain_loop_trains_as_the_fleet_does(problem) -> None:
    given = work(problem, 3, STEPS)
    for form in plain.forms(given.spec, "cpu"):
        agree(given, plain.build(given, "cpu", form)())


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_vmap_ensemble_trains_as_the_fleet_does(problem) -> None:
    given = work(problem, 3, STEPS)
    agree(given, vmap.build(given, "cpu", "eager")())


@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_jax_trains_as_the_fleet_does(problem) -> None:
    from peers import jax_vmap

    given = work(problem, 3, STEPS)
    agree(given, jax_vmap.build(given, "cpu", "float32")())


class TestLosses:
    REFERENCE: ClassVar = [[1.0] * 64, [2.0] * 64]

    def off(self, *models: int, by: float = 0.1) -> list[list[float]]:
        losses = [list(row) for row in self.REFERENCE]
        for model in models:
            losses[1][model] *= 1 + by
        return losses

    def agrees(self, problem: Problem, losses: list[list[float]]) -> bool:
        from peers_speed import agreement

        return agreement(problem, losses, self.REFERENCE)["agrees"]

    @pytest.mark.parametrize("problem", PROBLEMS, ids=str)
    def test_one_that_rounding_alone_parts_agrees(self, problem) -> None:
        assert self.agrees(problem, self.off(3, by=1e-4))
        assert self.agrees(problem, [row[:1] for row in self.REFERENCE])

    @pytest.mark.parametrize("problem", PROBLEMS, ids=str)
    def test_nan_never_agrees(self, problem) -> None:
        assert not self.agrees(problem, self.off(3, by=math.nan))

    def test_a_dense_model_that_is_off_is_seen(self) -> None:
        assert not self.agrees(Problem("add7", "dense"), self.off(3))

    def test_few_models_of_experts_may_go_another_way(self) -> None:
        assert self.agrees(Problem("add7", "moe"), self.off(0, 1, 2, 3))
        assert not self.agrees(Problem("add7", "moe"), self.off(0, 1, 2, 3, 4))


class Programs:
    """Stands for `peers_speed.Bench`: each cell measured is one more than the last."""

    measured = 0

    def __init__(self, *given) -> None:
        pass

    def ceilings(self) -> dict[str, float]:
        return {"fp32": 1e12, "tf32": 1e12, "copy": 1e12}

    def cell(self, problem, models):
        Programs.measured += 1
        return {
            "e": {
                "model_steps_per_second": float(Programs.measured),
                "setup": 1.0,
                "form": "fleet",
                "agrees": True,
            }
        }

    def end(self) -> None:
        pass


def test_cells_of_the_same_device_and_versions_are_not_measured_again(tmp_path, monkeypatch) -> None:
    import peers_speed

    monkeypatch.setattr(peers_speed, "Bench", Programs)

    def after(*more: str) -> list[float]:
        peers_speed.main(["--quick", "--rows", "e", "--device", "cpu", "--output", str(tmp_path), *more])
        (file,) = tmp_path.iterdir()
        record = json.loads(file.read_text())
        assert len(record["cells"]) + len(record["left_out"]) == 4
        assert str(tmp_path) not in record["command"]
        return [cell["rows"]["e"]["model_steps_per_second"] for cell in record["cells"]]

    assert after("--minutes", "0") == []
    assert after() == [1, 2, 3, 4]
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    del record["cells"][1]
    file.write_text(json.dumps(record))
    assert after() == [1, 5, 3, 4]
    assert after("--anew") == [6, 7, 8, 9]
    monkeypatch.setattr(peers_speed, "versions", lambda: {"torch": "another"})
    assert after() == [10, 11, 12, 13]


def test_the_table_hides_neither_a_missing_row_nor_one_that_disagrees() -> None:
    from rich.console import Console

    from peers_speed import TOLERANCE, table

    good = {"model_steps_per_second": 80.0, "times_a": 8.0, "of_floor": 0.5, "setup": 1.0, "form": "fleet"}
    rows = {
        "a": {
            **good,
            "model_steps_per_second": 10.0,
            "times_a": 1.0,
            "loss_difference": 1e-6,
            "agrees": True,
        },
        "c": {**good, "loss_difference": 0.3, "agrees": False},
        "d": {"reason": "JAX is not installed"},
        "e": {**good, "loss_difference": 0.0, "agrees": True},
    }
    cells = [{"problem": "add7, moe", "models": 64, "rows": rows}]
    shown, notes = table({"cells": cells, "tolerance": TOLERANCE, "left_out": ["add7, moe, M = 4: left out"]})
    console = Console(width=160)
    with console.capture() as text:
        console.print(shown)
    assert "80 ✗" in text.get()
    assert any("LOSSES DIFFER" in note and "(c)" in note for note in notes)
    assert any("not available here: JAX is not installed" in note for note in notes)
    assert "left out" in notes[-1]


class TestTrees:
    """`tree_speed`, with layers small enough to be timed in no time."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        import tree_speed

        for name, value in {"D": 16, "H": 64, "BATCHES": (1, 40), "VARIETY": 3}.items():
            monkeypatch.setattr(tree_speed, name, value)
        torch.manual_seed(0)

    def test_every_row_is_timed_and_held_against_its_masked_form(self) -> None:
        from tree_speed import cpu_rows, table

        with torch.no_grad():
            rows = cpu_rows([(4, 3), (1, 5)], 0.001, (1e11, 1e10))
        names = ["dense", "4 trees of depth 3", "MoE, 4 × 16", "1 tree of depth 5", "MoE, 8 × 8"]
        assert [(row["tokens"], row["layer"]) for row in rows] == [
            (n, name) for n in (1, 40) for name in names
        ]
        assert all(row["agrees"] and row["seconds"] > 0 for row in rows)
        assert rows[0]["times_dense"] == 1
        trees = rows[1]
        assert (trees["width"], trees["active"]) == (60, 16)
        # One token opens 16 rows of each matrix, and no more can be asked of memory.
        least = 4 * (2 * 16 + 2 * 16 * 16) / 1e10
        assert trees["of_floor"] == pytest.approx(least / trees["seconds"])
        assert "DIFFERS" not in table(rows)

    def test_a_layer_that_computes_something_else_is_seen(self) -> None:
        from tree_speed import TOLERANCE, line, off, table, trees

        name, ffn, function, given = trees(4, 3, "cpu", torch.float32)
        x = torch.randn(50, 16)
        assert off((name, ffn, function, given), x) < TOLERANCE[torch.float32]
        error = off((name, ffn, lambda x, *w: 1.001 * function(x, *w), given), x)
        row = line(name, ffn, 1.0, 1.0, 0.5, error, torch.float32)
        row |= {"device": "cpu", "tokens": 50, "what": "forward", "eager": None, "off": error}
        assert "OUTPUT DIFFERS by 1.0e-03" in table([row])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store of the smoke profile, and what was told of it: once in two calls, once more in one."""
    from from_nothing import main

    folder = tmp_path_factory.mktemp("again")
    first, second = folder / "first", folder / "second"
    told = {}
    for name, store, more in (
        ("cut short", first, ["--minutes", "0"]),
        ("first", first, []),
        ("second", second, ["--without", "moe_hash"]),
    ):
        path = folder / f"{name}.json"
        main([*map(str, (store, "--profile", "smoke", "--output", path, "--committed", first)), *more])
        told[name] = json.loads(path.read_text(encoding="utf-8"))
    return first, second, told


class TestFromNothing:
    def test_it_goes_on_from_where_it_stopped_and_counts_every_call(self, trained) -> None:
        told = trained[2]
        assert told["cut short"]["missing"] == 18
        assert told["first"]["missing"] == 0
        assert len(told["first"]["calls"]) == 2
        assert sum(call["runs"] for call in told["first"]["calls"]) == told["first"]["runs"] == 18
        spent = sum(call["seconds"] for call in told["first"]["calls"])
        assert told["first"]["device_seconds"] == pytest.approx(spent, abs=0.1)
        (part,) = told["first"]["parts"]
        assert sum(shard["models"] for shard in part["shards"]) == 18

    def test_the_same_training_is_the_same_to_the_bit(self, trained) -> None:
        told = trained[2]["second"]
        assert told["arms"] == ["moe_switch", "moe_top2"]
        assert "moe_hash" not in {row["arm"] for row in told["again"]}
        assert len(told["again"]) == 3 * 2 * 3
        assert all(row["same_to_the_bit"] == row["seeds"] == 2 for row in told["again"])
        assert all(row["difference"] == row["low"] == row["high"] == 0 for row in told["again"])

    def test_another_training_is_seen(self, trained) -> None:
        """Held against models of which one number is another."""
        from from_nothing import again
        from sparsity_moves.store import Store
        from sparsity_moves.studies import controls
        from sparsity_moves.studies.study import Study

        class Swapped(Store):
            def moments(self, spec_ids):
                rows = super().moments(spec_ids)
                return rows.with_columns(no_ffn_accuracy=1 - rows["no_ffn_accuracy"])

        first, second, _ = trained
        runs = [run for run in controls.study("smoke").runs if run[0] == "moe_top2"]
        rows = again(Study("controls", tuple(runs)), Store(first), Swapped(second))
        moved = [row for row in rows if row["column"] == "no_ffn_accuracy"]
        assert all(row["same_to_the_bit"] == 0 for row in moved)
        assert all(row["difference"] == pytest.approx(1 - 2 * row["first"]) for row in moved)

    def test_tasks_on_different_days_make_one_table(self, trained, tmp_path) -> None:
        from from_nothing import main

        first, _, once = trained
        path = tmp_path / "told.json"

        def told(folder: str, *tasks: str) -> dict:
            where = ["--output", path, "--committed", first, "--tasks", *tasks]
            main([*map(str, (tmp_path / folder, "--profile", "smoke", *where))])
            return json.loads(path.read_text(encoding="utf-8"))

        alone = told("one", "add7")
        assert (alone["runs"], {row["task"] for row in alone["again"]}) == (6, {"add7"})
        assert alone["left"] == {"controls": ["modular_addition", "histogram"]}
        both = told("two", "modular_addition", "histogram")
        assert both["runs"] == once["first"]["runs"]
        assert both["left"] == once["first"]["left"] == {}
        assert [part["tasks"] for part in both["parts"]] == [["add7"], ["modular_addition", "histogram"]]
        assert both["device_seconds"] == pytest.approx(
            sum(call["seconds"] for call in both["calls"]), abs=0.1
        )
        assert len(both["again"]) == 3 * 3 * 3
        anew = told("one", "add7")
        assert [part["tasks"] for part in anew["parts"]] == [["modular_addition", "histogram"], ["add7"]]
        path.write_text(path.read_text(encoding="utf-8").replace('"device": "cpu"', '"device": "another"'))
        assert len(told("one", "add7")["parts"]) == 1

    def test_sweeps_are_what_no_arm_has_and_each_run_is_in_one(self) -> None:
        from from_nothing import sweeps_of
        from sparsity_moves.errors import UserError
        from sparsity_moves.studies import controls, every

        arms = controls.study("paper")
        found = sweeps_of(arms, [])
        specs = [spec for study in found for spec in study.specs]
        assert len(specs) == len(set(specs))
        assert set(specs) == {spec for study in every("paper") for spec in study.specs} - set(arms.specs)
        assert {study.name for study in found} >= {"experts", "depth", "balance"}
        (alone,) = sweeps_of(arms, ["depth"])
        assert alone.name == "depth"
        with pytest.raises(UserError, match="no study of the profile paper is called deepth"):
            sweeps_of(arms, ["deepth"])

    def test_sweeps_are_trained_and_told_apart_from_the_arms(self, trained, tmp_path) -> None:
        from from_nothing import main

        path = tmp_path / "sweeps.json"
        where = ["--output", path, "--committed", trained[0], "--tasks", "add7"]
        main([*map(str, (tmp_path / "store", "--profile", "smoke", "--sweeps", "sweep", *where))])
        told = json.loads(path.read_text(encoding="utf-8"))
        assert told["runs"] > 0
        assert told["missing"] == 0
        assert told["command"].endswith("--profile smoke --sweeps sweep --tasks add7")
        assert told["again"] == []
        assert "sweep" not in told["left"]
        assert told["left"]["trees"] == ["add7", "modular_addition", "histogram"]

    def test_p_is_corrected_over_all_tasks(self) -> None:
        from from_nothing import corrected

        rows = corrected([{"p": 0.01}, {"p": None}, {"p": 0.04}])
        assert [row["p"] for row in rows] == [pytest.approx(0.02), None, pytest.approx(0.04)]

    def test_an_unknown_arm_is_named(self, tmp_path) -> None:
        from from_nothing import main
        from sparsity_moves.errors import UserError

        with pytest.raises(UserError, match="no arm of the profile smoke is called moe_hush"):
            main([str(tmp_path), "--profile", "smoke", "--without", "moe_hush"])


class TestTheLab:
    """`lab_speed`: what it waits for and sees in the page is tested in `test_lab.py`."""

    RECORD: ClassVar = {
        "experts": {"4": {"learned": [12.0, 9.0]}, "8": {"learned": [30.0, 10.5]}},
        "page": {"answer": [0.7, 0.4], "longest task": [0.13, 0.12]},
    }

    def test_a_goal_is_missed_when_no_round_reached_it(self) -> None:
        from lab_speed import missed

        assert missed(self.RECORD) == [
            "8 experts, 99 %: 10.50 s, where 10.0 s is the goal",
            "longest task: 0.12 s, where 0.1 s is the goal",
        ]

    def test_the_committed_table_was_measured_in_several_rounds(self) -> None:
        from lab_speed import EXPERTS, RESULT

        record = json.loads(RESULT.read_text(encoding="utf-8"))
        assert set(record["experts"]) == {str(n) for n in EXPERTS}
        assert record["about"]["rounds"] >= 3
        assert all(len(v) == record["about"]["rounds"] for v in record["experts"]["8"].values())


class TestTheExplorer:
    def test_the_goal_is_missed_when_no_round_reached_it(self) -> None:
        from explorer_speed import missed

        record = {"pages": {"explorer": {"picture": [140.0, 101.0]}}}
        assert missed(record) == "brush to picture: 101 ms, where 100 ms is the goal"
        record["pages"]["explorer"]["picture"].append(99.0)
        assert missed(record) is None

    def test_the_committed_table_was_measured_in_several_rounds_on_all_runs_of_the_task(self) -> None:
        from explorer_speed import MOMENT, PAGES, RESULT, ROOT, TASK
        from sparsity_moves.store import Store
        from sparsity_moves.store.tables import RUNS

        record = json.loads(RESULT.read_text(encoding="utf-8"))
        rows = Store(ROOT / "results" / "paper").table(RUNS).filter(task=TASK, moment=MOMENT)
        assert record["about"]["runs"] == rows["spec_id"].n_unique()
        assert set(record["pages"]) == set(PAGES)
        assert record["about"]["rounds"] >= 3
        for found in record["pages"].values():
            assert {len(values) for values in found.values()} == {record["about"]["rounds"]}

    def test_a_brush_that_changes_nothing_is_no_measurement(self, browser, tmp_path: Path) -> None:
        from browsing import bare_page
        from explorer_speed import moved

        body = '<div id="chart"><canvas></canvas></div><script>window.view = {runAsync() {}}</script>'
        (tmp_path / "still.html").write_text(bare_page("Runs", body), encoding="utf-8")
        with pytest.raises(RuntimeError, match="the brush moved and the picture did not"):
            moved(browser, "points", (tmp_path / "still.html").as_uri())

    def test_the_brush_of_all_three_pages_is_timed(self, browser, tmp_path: Path) -> None:
        from browsing import bare_page
        from explorer_speed import chart, explorer_page, moved, vega_page
        from test_explorer import planted

        runs = planted()
        pages = {"explorer": explorer_page(runs, tmp_path)}
        pages |= {name: vega_page(chart(runs, linked=name == "linked")) for name in ("points", "linked")}
        for name, body in pages.items():
            (tmp_path / f"{name}.html").write_text(bare_page("Runs", body), encoding="utf-8")
            took, _ = moved(browser, name, (tmp_path / f"{name}.html").as_uri())
            assert len(took) == 20
            assert min(took) > 0
