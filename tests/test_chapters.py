"""What the chapters show: figures and tables from a table of runs, sentences decided by their numbers, players whose
answers are the tasks', and the panel that trains live."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest
from playwright.sync_api import Browser

from sparsity_moves import studies
from sparsity_moves.figures import (
    agreement,
    brushing,
    curves,
    differences,
    prose,
    reference,
    sizes,
    sweep,
    words,
)
from sparsity_moves.figures.ablation import LANES, component_ablation
from sparsity_moves.figures.answer import answer
from sparsity_moves.figures.book_renderer import DATA_DIR, to_json
from sparsity_moves.figures.player import Player, player
from sparsity_moves.figures.summary import (
    Summary,
    spans,
    summaries,
    summary,
    with_convergence,
)
from sparsity_moves.figures.summary import (
    differences as paired,
)
from sparsity_moves.studies.published import find
from sparsity_moves.tasks import Addition, Histogram, ModularAddition, Task
from sparsity_moves.widgets import Retrain, retrain

SHARE = {"dense": 0.1, "narrow": 0.25, "glu": 0.1, "moe": 0.5, "moe_frozen": 0.48, "moe_glu": 0.4}
"""No-FFN accuracy of each arm in the planted tables."""


def planted(
    share: dict[str, float] = SHARE, *, moe_learns: bool = True, number: int = 3
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """runs.moments and runs.curves of the redistribution study, `number` seeds an arm, with known accuracies."""
    rows, lines = [], []
    study = studies.redistribution.study("laptop", number_of_seeds=number)
    for arm, spec in study.runs:
        learned = moe_learns or arm != "moe"
        left = share[arm] + 0.01 * studies.seeds(number).index(spec.seed)
        measured: dict[str, Any] = dict.fromkeys(reference.RUNS, None)
        measured |= {field: getattr(spec, field) for field in reference.RUNS if hasattr(spec, field)}
        measured |= {name: left for name in reference.RUNS if name.endswith("_accuracy")}
        measured |= {"accuracy": 0.999 if learned else 0.3, "exact_match": 0.997 if learned else 0.0}
        measured |= {"test_accuracy": 0.999 if learned else 0.3, "arm": arm, "study": "redistribution"}
        moments = ["first_best", "final"]
        if spec.task == "modular_addition" and learned:
            moments.insert(1, "grokked")
        rows += [measured | {"moment": moment, "step": 100} for moment in moments]
        lines += [
            {name: measured.get(name) for name in reference.CURVES} | {"step": step, "loss": 1.0}
            for step in (100, 200)
        ]
    return pl.DataFrame(rows, infer_schema_length=None), pl.DataFrame(lines, infer_schema_length=None)


@pytest.fixture(scope="module")
def moments() -> pl.DataFrame:
    return planted()[0]


class TestSummary:
    def test_a_mean_lies_in_its_interval_and_the_interval_in_the_range(self) -> None:
        found = summary([0.1, 0.2, 0.4, 0.9])
        assert found.low is not None
        assert found.high is not None
        assert 0.1 <= found.low < found.mean < found.high <= 0.9
        assert found.mean == pytest.approx(0.4)
        assert found.n == 4

    def test_the_deviation_is_the_papers(self) -> None:
        assert summary([0.0, 1.0]).sd == 0.5  # ddof = 0

    def test_the_same_values_give_the_same_interval(self) -> None:
        assert summary([0.1, 0.5, 0.7]) == summary([0.1, 0.5, 0.7])

    def test_one_value_has_no_interval_and_none_has_no_mean(self) -> None:
        assert summary([0.3]) == Summary(0.3, 0.0, None, None, 1)
        with pytest.raises(ValueError, match="at least one"):
            summary([])

    def test_equal_values_have_an_interval_of_no_width(self) -> None:
        found = summary([0.5, 0.5, 0.5])
        assert (found.low, found.high) == (0.5, 0.5)

    def test_the_interval_covers_the_truth_about_as_often_as_it_says(self) -> None:
        import numpy as np

        drawn = np.random.default_rng(0).normal(size=(100, 30))
        hits = sum(found.low <= 0 <= found.high for found in map(summary, drawn))  # type: ignore[operator]
        assert 88 <= hits <= 99

    def test_differences_are_paired_by_seed_whatever_the_order_and_the_gaps(self) -> None:
        rows = pl.DataFrame(
            {
                "task": "t",
                "arm": ["moe", "dense", "dense", "moe", "moe"],
                "seed": [2, 1, 2, 1, 3],
                "x": [0.7, 0.1, 0.2, 0.5, 0.9],
            }
        )
        found = paired(rows, ["task"], "x")
        assert dict(found.select("seed", "difference").iter_rows()) == pytest.approx({2: 0.5, 1: 0.4})

    def test_groups_keep_their_types_and_order(self) -> None:
        rows = pl.DataFrame({"arm": ["b", "a", "b"], "x": [0.0, 1.0, 1.0]})
        found = summaries(rows, ["arm"], "x")
        assert found["arm"].to_list() == ["b", "a"]
        assert found["mean"].to_list() == [0.5, 1.0]

    def test_seeds_are_named_with_their_neighbours_together(self) -> None:
        assert spans([5, 0, 1, 2, 42, 6, 2]) == "0–2, 5–6, 42"
        rows = pl.DataFrame({"arm": ["moe"] * 3, "seed": [42, 1, 0], "x": [1.0, 2.0, 3.0]})
        assert summaries(rows, ["arm"], "x")["seeds"].to_list() == ["0–1, 42"]

    def test_a_model_that_never_grokked_has_not_learned(self) -> None:
        rows = with_convergence(planted(moe_learns=False)[0]).filter(moment="final")
        assert set(rows.filter("converged")["arm"]) == set(SHARE) - {"moe"}


class TestFirstResult:
    def test_every_seed_is_drawn_and_downloaded(self, moments: pl.DataFrame) -> None:
        figure = component_ablation(moments)
        assert figure.csv.count("\n") == len(moments) + 1
        for seed in studies.seeds(3):
            assert f'"seed":{seed}' in to_json(figure.spec)

    def test_published_values_are_drawn_from_the_table(self, moments: pl.DataFrame) -> None:
        text = to_json(component_ablation(moments).spec)
        for arm in ("dense", "moe", "moe_frozen"):
            assert f'"percent":{find("add7", arm, "no_ffn_accuracy")["value"]}' in text

    def test_our_full_scale_runs_join_in_a_lane_of_their_own(self, moments: pl.DataFrame) -> None:
        alone = to_json(component_ablation(moments).spec)
        assert LANES["full"] not in alone
        figure = component_ablation(moments, planted(dict.fromkeys(SHARE, 0.77))[0])
        assert f'"lane":"{LANES["full"]}"' in to_json(figure.spec)
        assert '"percent":78.0' in to_json(figure.spec)

    def test_chance_lines_are_the_tasks(self, moments: pl.DataFrame) -> None:
        text = to_json(component_ablation(moments).spec)
        for task in words.TASK_NAMES:
            for share in words.task_of(moments.filter(task=task)).chance().values():
                assert f'"percent":{round(100 * share, 2)}' in text

    def test_the_reader_of_the_alternative_text_gets_the_means(self, moments: pl.DataFrame) -> None:
        assert "MoE 51.0 %" in component_ablation(moments).alt

    def test_all_other_figures_draw(self, moments: pl.DataFrame) -> None:
        for figure in (answer(moments), curves.trajectories(planted()[1], moments)):
            assert figure.spec["description"]

    def test_runs_at_full_scale_can_be_chosen_instead(self, moments: pl.DataFrame) -> None:
        full, steps = planted(dict.fromkeys(SHARE, 0.77))
        drawing, course = answer(moments, full), curves.trajectories(planted()[1], moments, (steps, full))
        for figure in (drawing, course):
            assert set(pl.read_csv(figure.csv.encode())["runs"]) == {"here", "full"}
            assert "full scale" in figure.caption
            boxes = {p["name"] for p in figure.spec["params"] if "bind" in p}  # type: ignore[attr-defined, index]
            assert "runs" in boxes
        left = pl.read_csv(drawing.csv.encode()).filter(runs="full", away="ffn")["percent"]
        assert left.to_list() == pytest.approx([78.0] * len(left))
        alone = {p["name"] for p in answer(moments).spec["params"] if "bind" in p}  # type: ignore[attr-defined, index]
        assert "runs" not in alone

    def test_it_says_that_the_order_holds_only_when_it_does(self, moments: pl.DataFrame) -> None:
        assert any("holds here" in line for line in differences.reading(moments))
        other = planted(SHARE | {"moe": 0.05})[0]
        assert any("**does not hold** here" in line for line in differences.reading(other))

    def test_an_interval_that_includes_zero_is_called_so(self, moments: pl.DataFrame) -> None:
        same = planted(SHARE | {"moe": SHARE["dense"]})[0]
        found = differences.shift(differences.at_paper_moment(same), "add7", "moe")
        assert found is not None
        assert "includes zero" in differences.verdict(found)
        clear = differences.shift(differences.at_paper_moment(moments), "add7", "moe")
        assert clear is not None
        assert clear.mean == pytest.approx(0.4)
        assert "without zero" in differences.verdict(clear)

    def test_moved_takes_enough_pairs_that_learned_and_every_replacement(self) -> None:
        def verdict(rows: pl.DataFrame) -> str:
            return differences.moved(rows, "add7", "moe")

        rows = planted(number=6)[0]
        assert verdict(rows) == "yes"
        assert verdict(planted(number=5)[0]) == "too few"
        assert verdict(planted(SHARE | {"moe": SHARE["dense"]}, number=6)[0]) == "no"
        assert verdict(planted(moe_learns=False, number=6)[0]) == "too few"
        none = pl.when(arm="moe").then(0.0).otherwise("resample_ffn_accuracy").alias("resample_ffn_accuracy")
        assert verdict(rows.with_columns(none)) == "no"

    def test_models_that_did_not_learn_are_named(self, moments: pl.DataFrame) -> None:
        assert differences.unlearned(moments).startswith("Every model learned")
        named = differences.unlearned(planted(moe_learns=False)[0])
        assert "MoE (modular addition, seed 42, 137 and 256)" in named
        table = differences.convergence_table(planted(moe_learns=False)[0])
        assert set(table.filter(FFN="MoE")["learned"]) == {"0 of 3"}

    def test_a_task_that_no_pair_learned_gives_no_number(self) -> None:
        rows = planted(moe_learns=False)[0]
        assert differences.shift(differences.at_paper_moment(rows), "modular_addition", "moe") is None
        assert any("nothing can be said" in line for line in differences.reading(rows))

    def test_the_published_shift_is_the_difference_of_the_published_means(
        self, moments: pl.DataFrame
    ) -> None:
        rows = differences.difference_table(moments).filter(task="Addition", FFN="MoE")
        theirs = [find("add7", arm, "no_ffn_accuracy")["value"] for arm in ("moe", "dense")]
        assert rows["published"][0] == f"+{theirs[0] - theirs[1]:.1f}"  # type: ignore[operator]
        assert rows["zero"][0] == "+40.0 (40.0\u00a0to\u00a040.0)"
        assert rows["pairs"][0] == "3 (3)"


class TestAgreement:
    """The lab's chapter says what the committed benchmark found, and only that."""

    def told(self, path: Path, difference: list[float]) -> str:
        found = {"lab": [0.2, 0.4], "python": [0.1, 0.3], "difference": difference}
        told = {
            "seeds": 2,
            "level": 0.975,
            "no_ffn_accuracy": {"dense": found},
            "lab_exact_match": {"dense": [0.1, 1.0]},
        }
        path.write_text(json.dumps(told), encoding="utf-8")
        return agreement.agreement()

    def test_it_says_whether_zero_is_in_the_interval(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agreement, "benchmark", lambda: tmp_path / "lab_agreement.json")
        assert "not measured yet" in agreement.agreement()
        same, apart = (
            self.told(tmp_path / "lab_agreement.json", ends) for ends in ([-0.1, 0.2], [0.05, 0.2])
        )
        assert "no difference is found, and one of 20.0 points is not ruled out" in same
        assert ">30.0" in same
        assert ">20.0" in same
        assert "they differ" in apart
        assert "dense: 1 of 2" in same

    def test_speed_is_told_as_medians_and_ranges_or_as_not_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "lab_speed.json"
        monkeypatch.setattr(agreement, "benchmark", lambda name: tmp_path / f"{name}.json")
        assert "not been measured yet" in agreement.speed()
        row = {"learned": [3.0, 1.0, 2.0], "done": [4.0] * 3}
        row |= {"steps a second": [10.0, 30.0, 80.0], "plain steps a second": [10.0, 20.0, 20.0]}
        page = {"answer": [0.2, 0.1, 0.3], "longest task": [0.015] * 3}
        about = {"cores": 2, "chromium": "9.1", "rounds": 3}
        path.write_text(json.dumps({"about": about, "experts": {"4": row}, "page": page}), encoding="utf-8")
        said = agreement.speed()
        assert "| 4 | 2.0 (1.0 to 3.0) | 4.0 | 1.5 (1.0 to 4.0) |" in said
        assert "after 200 (100 to 300) ms" in said
        assert "thread is 15 ms" in said

    def test_how_soon_the_explorer_follows_is_told_beside_vega_lite(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(brushing, "committed", lambda pattern: {})
        assert "not been measured yet" in brushing.speed()
        pages = {"explorer": [20.0, 18.0, 31.0], "points": [17.0] * 3, "linked": [40.0, 50.0, 60.0]}
        about = {"cores": 2, "chromium": "9.1", "rounds": 3, "runs": 3304}
        found = {"about": about, "pages": {name: {"picture": values} for name, values in pages.items()}}
        monkeypatch.setattr(brushing, "committed", lambda pattern: {"explorer_speed": found})
        said = brushing.speed()
        assert "all 3\u202f304 runs of add-7" in said
        assert (
            "after 20 (18 to 31) ms; a Vega-Lite chart takes 17 ms for the points alone, 50 (40 to 60) ms"
            in said
        )

    def test_the_committed_table_has_the_seeds_it_was_asked_for(self) -> None:
        path = Path(__file__).parents[1] / "benchmarks" / "results" / "lab_agreement.json"
        told = json.loads(path.read_text(encoding="utf-8"))
        for setting, found in told["no_ffn_accuracy"].items():
            lengths = {len(found["lab"]), len(found["python"]), len(told["lab_exact_match"][setting])}
            assert lengths == {told["seeds"]}
        assert told["seeds"] >= 20


class TestSweep:
    def rows(self, counts: tuple[int, ...] = (1, 2, 4)) -> pl.DataFrame:
        return pl.DataFrame(
            [
                {"task": "add7", "moment": "final", "experts": e, "width": w, "seed": s, "step": 9}
                | {"digits": 3, "addend": 7, "profile": "laptop", "spec_id": f"{e}-{w}-{s}", "arm": "moe"}
                | dict.fromkeys(sweep.SHOWN, 0.1 * e)
                for e in counts
                for w in (64, 128)
                for s in (1, 2)
            ]
        )

    def test_the_sliders_reach_every_cell(self) -> None:
        spec = sweep.expert_sweep(self.rows()).spec
        bound = {p["name"]: p["bind"] for p in spec["params"] if "bind" in p}  # type: ignore[attr-defined, index]
        assert (bound["log_experts"]["min"], bound["log_experts"]["max"]) == (0, 2)
        assert (bound["log_width"]["min"], bound["log_width"]["max"]) == (6, 7)
        assert "width" not in bound  # a parameter of that name would resize the chart

    def test_means_at_full_scale_stand_in_the_cells_that_have_them(self) -> None:
        full = self.rows((4,)).with_columns(no_ffn_accuracy=pl.lit(0.77))
        assert '"mean":77.0' not in to_json(sweep.expert_sweep(self.rows()).spec)
        figure = sweep.expert_sweep(self.rows(), full)
        assert '"mean":77.0' in to_json(figure.spec)
        assert "full scale" in figure.caption

    def test_a_count_that_the_slider_cannot_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="powers of two, which 3 is not"):
            sweep.expert_sweep(self.rows((1, 3)))


class TestSizes:
    def test_they_are_the_papers(self) -> None:
        rows = sizes.sizes("paper")
        found = dict(rows.filter(task="add7").select("arm", "ffn_parameters").iter_rows())
        assert (found["dense"], found["moe"], found["glu"], found["moe_glu"]) == (
            33_088,
            33_536,
            32_640,
            32_512,
        )
        assert rows.filter(task="add7", arm="moe")["active_ffn_parameters"][0] == 8_320 + 256

    def test_arms_of_one_size_share_a_row_and_none_is_lost(self) -> None:
        rows = sizes.sizes("paper").filter(task="histogram")
        shown = sizes.size_table(rows)
        assert sum(len(names.split("; ")) for names in shown["FFN"]) == len(rows)
        assert len(shown) < len(rows)

    def test_the_figure_draws(self) -> None:
        assert "33,088" in sizes.size_map(sizes.sizes("paper")).alt


class TestProse:
    def test_a_table_is_numbered_and_right_aligns_numbers(self) -> None:
        text = prose.table(pl.DataFrame({"a": ["x|y"], "n": [12345]}), name="t", caption="Two.").source
        assert text.startswith(":::{table} Two.\n:name: tab-t\n")
        assert "|---|---:|" in text
        assert "x\\|y" in text
        assert "12\u202f345" in text

    def test_live_nothing_is_left_of_roles_and_directives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(DATA_DIR, raising=False)
        shown = prose.table(pl.DataFrame({"a": [1]}), name="t", caption="See {eq}`ffn`, {cite:p}`x`.")
        text = shown._repr_mimebundle_()["text/markdown"]
        assert text.startswith("*See ffn, x.*")
        assert "{" not in text
        assert ":::" not in text

    def test_a_value_says_what_is_behind_it(self) -> None:
        text = prose.mean(Summary(0.443, 0.1, 0.4, 0.5, 8))
        assert 'title="n = 8 seeds, 95 % CI 40.0 to 50.0"' in text
        assert ">44.3\u00a0%<" in text

    @pytest.mark.parametrize(("given", "text"), [([], "none"), (["a"], "a"), (["a", "b", "c"], "a, b and c")])
    def test_lists_read_as_english(self, given: list[str], text: str) -> None:
        assert prose.listed(given) == text


def test_every_column_of_the_tables_is_documented() -> None:
    import dataclasses

    from sparsity_moves.training import Spec

    fields = [field.name for field in dataclasses.fields(Spec)]
    assert set(fields) <= set(reference.RUNS)
    measured = [name for name in reference.RUNS if name not in fields]
    assert "no_ffn_accuracy" in measured
    assert all(reference.RUNS.values())


PLAYED: list[Task] = [Addition(), Addition(2, 9), ModularAddition(31, 0.6), Histogram(), Histogram(16, 8)]


class TestPlayer:
    def everything(self, task: Task, shown: Player) -> Iterator[tuple[tuple[int, ...], Any, int]]:
        """Every setting of the controls, with the task's own sequences and the row in them."""
        match task:
            case Addition():
                every = task.everything()
                yield from (((i,), every, i) for i in range(len(every)))
            case ModularAddition():
                every = task.evaluation(0, 0)
                yield from (((i // task.modulus, i % task.modulus), every, i) for i in range(len(every)))
            case _:
                from sparsity_moves.tasks import generator

                every = task.sample(len(shown.examples), generator(0, "player"))  # type: ignore[attr-defined]
                yield from (((i,), every, i) for i in range(len(every)))

    @pytest.mark.parametrize("task", PLAYED, ids=str)
    def test_every_example_is_the_tasks(self, task: Task) -> None:
        shown = player(task)
        for values, every, i in self.everything(task, shown):
            cells = shown.cells(*values)
            assert shown.sum(*values) == task.render(every, i)
            reads = [cells[c] if isinstance(c, int) else c for c in shown.rows["reads"]]
            given = every.tokens[i].tolist()
            if task.name == "add7":
                assert reads == ["EOS" if t == 11 else str(t) for t in given]
                operations = [cells[c] for c in shown.rows["operation"] if isinstance(c, int)]
                assert operations == [task.operation_names[o] for o in every.operations[i].tolist() if o >= 0]
            if task.name == "modular_addition":
                assert cells[3] == task.operation_names[every.operations[i, 0]]

    def test_the_page_shows_the_first_example_without_its_script(self) -> None:
        assert "497 + 7 = 0504" in player(Addition()).to_html()

    def test_in_a_browser_it_shows_what_python_says(self, tmp_path: Path, browser: Browser) -> None:
        players = [player(task) for task in (Addition(), ModularAddition(31, 0.6), Histogram())]
        body = "".join(shown.to_html() for shown in players)
        (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{body}", encoding="utf-8")
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        add, modular, histogram = (page.locator(f"#player-{shown.name}") for shown in players)

        add.get_by_label("Number", exact=True).fill("996")
        assert add.locator(".player-sum").inner_text() == players[0].sum(996)
        add.get_by_label("Number, slider").focus()
        page.keyboard.press("ArrowRight")
        assert add.locator(".player-sum").inner_text() == players[0].sum(997)
        assert add.locator("td[data-marked='1']").all_inner_texts() == ["+1", "+1", "+1"]
        add.get_by_label("Number", exact=True).fill("123456")
        assert add.locator(".player-sum").inner_text() == players[0].sum(999)

        modular.get_by_label("b", exact=True).fill("30")
        assert modular.locator(".player-sum").inner_text() == players[1].sum(23, 30)

        for step in range(1, 4):
            histogram.get_by_role("button", name="Next sequence").click()
            assert histogram.locator(".player-sum").inner_text() == players[2].sum(step)
            shown = histogram.locator("td[data-cell]").all_inner_texts()
            assert shown == players[2].cells(step)
        page.close()


class TestRetrain:
    def test_the_published_page_says_how_to_run_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(DATA_DIR, "/nowhere")
        assert "make lab" in retrain()._repr_mimebundle_()["text/markdown"]

    def test_moving_a_slider_trains_the_model_it_asks_for(self) -> None:
        panel = Retrain("smoke", experts=4, width=64)
        panel.experts.value = 2
        panel.wait(60)
        assert panel.run is not None
        assert (panel.run.spec.experts, panel.run.spec.width) == (2, 64)
        assert panel.bar.value == 1
        assert "without FFN" in panel.said.value
        assert panel.picture.value.startswith("<svg")

    def test_a_later_choice_overtakes_an_earlier_one(self) -> None:
        panel = Retrain("smoke", width=64)
        panel.seed.value = studies.seeds(2)[1]
        panel.routing.value = "moe_switch"
        panel.wait(60)
        assert panel.run is not None
        assert (panel.run.spec.gate, panel.run.spec.seed) == ("switch", studies.seeds(2)[1])

    def test_what_does_not_fit_together_is_said(self) -> None:
        panel = Retrain("smoke", experts=2, width=64)
        panel.top_k.value = 4
        assert "top-k is from 1" in panel.said.value
        assert panel.run is None

    def test_one_expert_is_the_dense_layer(self) -> None:
        assert Retrain("smoke", experts=1, width=64).spec().router == "none"


def test_no_chart_names_a_parameter_width() -> None:
    """A parameter called `width` would resize the chart instead of choosing a layer."""
    moments, steps = planted()
    for figure in (component_ablation(moments), answer(moments), curves.trajectories(steps, moments)):
        names = {parameter["name"] for parameter in figure.spec.get("params", [])}  # type: ignore[attr-defined]
        assert not names & {"width", "height", "padding", "autosize", "background"}
    assert alt.SCHEMA_VERSION
