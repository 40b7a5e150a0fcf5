"""The argument's chapters: figures and sentences from the committed tables, and from tables with planted answers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import Browser, Page

from sparsity_moves import studies
from sparsity_moves.figures import (
    apart,
    causes,
    conditions,
    counting,
    decomposition,
    digits,
    frequencies,
    grokking,
    matching,
    patterns,
    routers,
    timeline,
    trees,
    undoing,
)
from sparsity_moves.figures.book_renderer import Figure, to_json
from sparsity_moves.figures.grouped import part_mean
from sparsity_moves.figures.prose import Text
from sparsity_moves.figures.scoreboard import Scoreboard
from sparsity_moves.figures.strips import strip
from sparsity_moves.figures.theme import arm_label
from sparsity_moves.figures.told import NOT_YET, Teller
from sparsity_moves.store import Store
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.evidence import Evidence
from sparsity_moves.studies.published import published

ROOT = Path(__file__).parents[1]
SHARE = {
    "dense": 0.1,
    "narrow": 0.25,
    "moe_active": 0.2,
    "moe_hash_context": 0.4,
    "moe_frozen": 0.48,
    "moe": 0.5,
}
"""No-FFN accuracy of each arm in the planted tables."""


def planted(share: dict[str, float] = SHARE, number: int = 6, profile: str = "paper") -> Evidence:
    """Runs of addition whose no-FFN accuracy is known: the arm's share, more in later seeds, twice it at the end."""
    rows: list[dict[str, Any]] = []
    lines, settings = [], {}
    for name, left in share.items():
        for place, seed in enumerate(studies.seeds(number)):
            base = name.removesuffix("_norm").split("_height")[0]
            more: dict[str, Any] = {"norm": "rms"} if name.endswith("_norm") else {}
            more |= {"tree_depth": studies.trees.height(name)} if "_height" in name else {}
            spec = studies.arm(base, profile, "add7", seed, **more)
            settings[spec.spec_id] = {"arm": name, "seed": seed}
            own = {
                field: getattr(spec, field)
                for field in ("task", "seed", "profile", "digits", "addend", "steps")
            }
            own |= {
                "spec_id": spec.spec_id,
                "arm": name,
                "study": "controls",
                "parameters": 10,
                "flops_per_token": 20,
            }
            own |= {"active_parameters": 5, "router_nmi": 0.3}
            own |= dict.fromkeys(("accuracy", "exact_match", "test_accuracy"), 1.0)
            for moment, step in (("first_best", 200), ("final", 400)):
                value = min(1.0, (left + 0.01 * place) * (2 if moment == "final" else 1))
                same = dict.fromkeys(("no_ffn_accuracy", "mean_ffn_accuracy", "resample_ffn_accuracy"), value)
                rows.append(own | same | {"moment": moment, "step": step})
                lines.append({"spec_id": spec.spec_id, "step": step, "no_ffn_accuracy": value})
    return Evidence(pl.DataFrame(rows, infer_schema_length=None), settings, pl.DataFrame(lines))


@pytest.fixture(scope="module")
def real() -> Argument:
    return Argument(Evidence.of(Store(ROOT / "results" / "paper")))


@pytest.fixture(scope="module")
def known() -> Argument:
    return Argument(planted())


def drawn(figure: Figure | Text) -> Figure:
    assert isinstance(figure, Figure), figure
    return figure


def data(figure: Figure | Text) -> pl.DataFrame:
    return pl.read_csv(drawn(figure).csv.encode(), infer_schema_length=None)


class TestRuns:
    def test_the_reader_trains_the_controls_that_the_chapters_name(self) -> None:
        names = {name for name, _ in studies.argument.study("laptop").runs}
        assert {"moe_active", "moe_hash_context", "moe_switch_frozen", "dense_norm", "moe_held_out"} <= names

    def test_an_arm_without_runs_is_left_out_and_named(self, known: Argument) -> None:
        assert known.missing("add7", ("dense", "moe_top2")) == ["moe_top2"]
        assert set(known.moments("add7", ("dense", "moe_top2"))["arm"]) == {"dense"}
        assert known.missing("histogram", ("dense",)) == ["dense"]

    def test_the_readers_runs_stand_beside_and_take_the_place_of_what_is_not_there(
        self, known: Argument
    ) -> None:
        both = Argument(known.main, planted({"dense": 0.2}, profile="laptop"))
        beside = both.beside("add7", ("dense", "moe"))
        assert beside is not None
        assert set(beside["profile"]) == {"laptop"}
        assert both.profile == "paper"
        assert known.beside("add7", ("dense",)) is None

    def test_a_width_sweep_does_not_stand_for_an_arm(self) -> None:
        """`moe_e8` at several widths is several settings; in `experts` it is one."""
        main = planted({"dense": 0.1})
        rows = main.rows.with_columns(pl.lit("moe_e8").alias("arm"))
        other = rows.with_columns(pl.lit("sweep").alias("study"), ("w" + pl.col("spec_id")).alias("spec_id"))
        more = {f"w{i}": own | {"width": 1} for i, own in main.settings.items()}
        both = Evidence(pl.concat([rows, other]), main.settings | more, main.curves)
        assert set(both.models("add7", "moe_e8")["study"]) == {"controls"}


class TestDecomposition:
    @pytest.mark.parametrize("which", ["real", "known"])
    def test_the_parts_sum_to_the_whole_at_every_step(
        self, which: str, request: pytest.FixtureRequest
    ) -> None:
        rows = data(decomposition.decomposition(request.getfixturevalue(which)))
        assert rows["step"].n_unique() >= 2
        for (_,), step in rows.group_by("step"):
            sizes = dict(step.select("part", "size").iter_rows())
            whole, first = sizes.pop("= the MoE"), sizes.pop("the dense layer")
            assert sum(sizes.values()) == pytest.approx(whole - first, abs=0.05)

    def test_the_parts_are_the_differences(self, known: Argument) -> None:
        rows = data(decomposition.decomposition(known)).filter(pl.col("step") == 200)
        sizes = dict(rows.select("part", "size").iter_rows())
        assert sizes["+ less width a token"] == pytest.approx(15)
        assert sizes["+ experts, dealt out at random"] == pytest.approx(15)
        assert sizes["+ which is trained"] == pytest.approx(2)

    def test_with_an_arm_missing_the_path_is_shorter_and_still_sums(self) -> None:
        few = Argument(planted({name: SHARE[name] for name in ("dense", "narrow", "moe")}))
        sizes = dict(
            data(decomposition.decomposition(few)).filter(step=200).select("part", "size").iter_rows()
        )
        assert sizes["+ which is trained"] == pytest.approx(25)
        assert isinstance(decomposition.decomposition(Argument(planted({"dense": 0.1}))), Text)

    def test_two_causes_and_what_they_do_together(self, known: Argument) -> None:
        found = decomposition.two_by_two(known)
        for column, (moment, measure) in decomposition.TAKEN.items():
            shown = [re.sub(r"<[^>]*>", "", text) for text in found[column]]
            mean = known.moments("add7", ["dense", "narrow", "moe_active", "moe"]).filter(moment=moment)
            by = dict(mean.group_by("arm").agg(100 * pl.col(measure).mean()).iter_rows())
            width, experts = by["narrow"] - by["dense"], by["moe_active"] - by["dense"]
            both = by["moe"] - by["dense"]
            wanted = [width, experts, both - width - experts, both]
            assert [float(text.split("(")[0]) for text in shown] == pytest.approx(wanted, abs=0.05), column


class TestFigures:
    """Every seed is drawn, the published value beside, and what is not there is not made up."""

    ARMS = ("dense", "narrow", "moe", "moe_hash")

    def test_a_strip_has_every_seed_and_the_published_value(self, real: Argument) -> None:
        figure = drawn(strip(real, self.ARMS, name="s", caption="S."))
        models = data(figure)
        assert models.group_by("arm").len()["len"].to_list() == [2 * 64] * 4  # two checkpoints
        assert '"value":44.3' in to_json(figure.spec)
        assert "64 seeds an arm, paper profile" in figure.caption

    def test_the_readers_runs_have_a_lane_of_their_own(self, known: Argument) -> None:
        both = Argument(known.main, planted({"dense": 0.77}, 3, "laptop"))
        models = data(strip(both, ("dense", "moe"), name="s", caption="S."))
        own = models.filter(lane="this computer", moment="first_best")
        assert own["no_ffn_accuracy"].to_list() == pytest.approx([77, 78, 79])

    def test_only_the_readers_runs_are_enough(self, known: Argument) -> None:
        both = Argument(known.main, planted({"moe_hash": 0.3}, 3, "laptop"))
        assert set(data(strip(both, ("moe_hash",), name="s", caption="S."))["lane"]) == {"this computer"}

    def test_without_any_run_there_is_a_sentence(self, known: Argument) -> None:
        assert "no stored runs yet" in str(strip(known, ("moe_hash",), name="s", caption="S."))
        for figure in (grokking.grokking(known), routers.learned_frozen(Argument(planted({"dense": 0.1})))):
            assert isinstance(figure, Text)

    def test_a_router_is_set_against_its_twin_of_the_same_seed(self, known: Argument) -> None:
        rows = data(routers.learned_frozen(known)).filter(moment="first_best", measure="no_ffn_accuracy")
        assert rows["points"].to_list() == pytest.approx([2.0] * 6)

    def test_the_margin_of_the_figure_is_that_of_the_claim(self) -> None:
        from sparsity_moves.studies.claims import claims

        (claim,) = (claim for claim in claims() if claim.id == "frozen-router")
        assert claim.parts[0].margin == routers.MARGIN

    def test_conditions_are_differences_within_a_setting_and_the_missing_are_named(self) -> None:
        some = Argument(planted(SHARE | {"dense_norm": 0.1, "moe_norm": 0.9}))
        rows = data(conditions.generality(some)).filter(moment="paper", seed=42)
        assert dict(rows.select("condition", "no_ffn_accuracy").iter_rows()) == pytest.approx(
            {"as in the paper": 40.0, "SiLU": 40.0, "with norm": 80.0}
        )
        assert "2 layers" in conditions.unmeasured(some)
        assert "with norm" not in conditions.unmeasured(some)

    def test_a_task_joins_the_figures_of_sweeps_with_its_runs(self, real: Argument) -> None:
        for figure in (conditions.generality(real), undoing.ways_back(real)):
            rows = data(figure)
            assert set(rows["task"]) == {"add7", "modular_addition", "histogram"}
            assert set(rows["moment"]) == {"paper", "final"}
        only = Argument(planted(SHARE))
        assert set(data(conditions.generality(only))["task"]) == {"add7"}
        assert "On histogram: all." in conditions.unmeasured(only)

    def test_a_published_setting_is_called_as_the_sweeps_call_it(self) -> None:
        names = {
            grokking._name(row["arm"], row["setting"])
            for row in published().iter_rows(named=True)
            if row["measure"] == "grokked_step"
        }
        assert names >= {"dense", "dense_norm", "dense_dropout0.1", "dense_wd2", "moe_e16"}

    def test_conditions_name_each_setting_once(self) -> None:
        words, *arms = zip(*conditions.conditions(), strict=True)
        assert len(set(words)) == len(words)
        again = [each for each, *names in zip(words, *arms, strict=True) if names == ["moe", "dense"]]
        assert again == ["as in the paper", "SiLU"], "addition's own activation"

    def test_every_figure_draws_from_the_committed_tables_within_its_weight(self, real: Argument) -> None:
        figures = [
            timeline.shift_over_training(real),
            matching.matching(real),
            conditions.generality(real),
            undoing.ways_back(real),
            routers.learned_frozen(real),
            grokking.grokking(real),
        ]
        for figure in figures:
            assert len(to_json(drawn(figure).spec)) < 500_000
            assert drawn(figure).alt

    def test_models_that_never_grokked_are_drawn_and_counted(self, real: Argument) -> None:
        every = data(grokking.grokking(real))
        rows = every.filter(arm="Dense")
        stored = real.moments("modular_addition", ["dense"])
        assert len(rows) == stored["seed"].n_unique()
        assert rows["grokked"].sum() == len(stored.filter(moment="grokked"))
        assert every.filter(~pl.col("grokked"))["step"].min() > 40_000  # type: ignore[operator]


class TestSentences:
    def test_a_number_says_its_seeds_interval_runs_and_verdict(self, real: Argument) -> None:
        said = Teller(real).mean("add7", "dense")
        values = real.moments("add7", ["dense"]).filter(moment="first_best")["no_ffn_accuracy"]
        assert f">{100 * values.mean():.1f}\u00a0%<" in said  # type: ignore[operator]
        for part in ("n = 64 seeds", "95 % CI", "paper profile", "published 11.9: reproduced"):
            assert part in said

    def test_a_difference_says_its_pairs_and_its_effect(self, real: Argument) -> None:
        said = Teller(real).difference("add7", "moe")
        for part in ("64 pairs", "above zero, d = ", "moe and dense", "points"):
            assert part in said

    def test_a_difference_between_moments_is_of_the_same_models(self, known: Argument) -> None:
        said = Teller(known).difference("add7", "narrow", "narrow", moment="final", since="first_best")
        assert "+27.5 points" in said  # 25 to 30, and as much again
        assert "the last step against the first best checkpoint" in said

    def test_what_is_not_there_is_not_made_up(self, known: Argument) -> None:
        tell = Teller(known)
        assert tell.mean("add7", "moe_top2") == NOT_YET
        assert tell.difference("histogram", "moe") == NOT_YET
        assert "MoE top-2" in tell.missing("add7", ("moe", "moe_top2"))
        assert tell.missing("add7", ("moe",)) == ""

    def test_the_course_over_height_is_read_from_the_runs(self) -> None:
        share = {
            "dense": 0.1,
            "moe": 0.3,
            "tree_height2": 0.1,
            "tree": 0.2,
            "tree_height7": 0.4,
            "tree_active": 0.3,
        }
        main = planted(share)
        wobble = 0.002 * (pl.int_range(pl.len()) % 5)  # else all seeds would differ by the same
        rows = main.rows.with_columns(pl.col("no_ffn_accuracy") + wobble)
        tell = Teller(Argument(Evidence(rows, main.settings, main.curves)))
        lines, missing = trees.course(tell, "add7")
        forest, active = (re.sub(r"<[^>]*>", "", line) for line in lines.splitlines())
        assert "the higher, the more** is right without the FFN (+60" in forest
        assert "from height 2 to 7" in forest
        assert "against Dense, more at height 3 and 7, no clear difference at height 2" in forest
        assert "against MoE, more at height 7, less at height 2 and 3" in forest
        assert "the higher" not in active, "of one height nothing is said about height"
        assert "against MoE, no clear difference at height 3" in active
        assert "Tree, height 4" in missing
        listed = trees.differences_table(tell, "add7").source
        forests = [line for line in listed.splitlines() if line.startswith("| Tree")]
        assert len(forests) == 4
        assert all(re.search(r"<br>(\d+) of \1 \|", line) for line in forests), "all learned"
        unlearned = rows.with_columns(
            pl.when(arm="tree_height7").then(0.5).otherwise("exact_match").alias("exact_match")
        )
        few, _ = trees.course(Teller(Argument(Evidence(unlearned, main.settings, main.curves))), "add7")
        assert few.count("fewer than half of the seeds learn the task") == 1
        said = re.sub(r"<[^>]*>", "", few).splitlines()[0]
        assert said.endswith(
            "at height 7 fewer than half of the seeds learn the task, so nothing is said of it."
        )
        assert "from height 2 to 3" in said
        assert "against Dense, more at height 3, no clear difference at height 2" in said
        assert "learn the task" not in lines
        assert trees.course(tell, "histogram") == ["*No tree has been run at this scale on histogram yet.*"]

    def test_a_conclusion_stands_only_where_its_claim_holds(self, real: Argument) -> None:
        tell = Teller(real)
        assert tell.where("sparse-shift", "so", "not so") == "so"
        swapped = planted(SHARE | {"moe": 0.05})
        assert Teller(Argument(swapped)).where("sparse-shift", "so", "not so") == "not so"

    def test_every_number_is_judged_listed_apart_or_listed_as_missing(self, real: Argument) -> None:
        numbers = real.board.numbers
        (apart_rows, reasons), missing = apart.apart_table(numbers), apart.unmeasured_table(numbers)
        good = sum(number.verdict() == "reproduced" for number in numbers)
        assert good + len(apart_rows) + missing["numbers"].sum() == len(numbers)
        assert all(why or five for why, five in apart_rows.select("why", "five of ours").iter_rows())
        letters = apart_rows["why"].unique().to_list()
        assert sorted(filter(None, letters)) == [line[4] for line in apart.reasons_list(reasons).splitlines()]


@pytest.fixture(scope="module")
def page(real: Argument, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The scoreboard of the committed tables, open."""
    path = tmp_path_factory.mktemp("scoreboard") / "page.html"
    body = Scoreboard(real.board, "paper").to_html()
    path.write_text(f"<!doctype html><meta charset=utf-8>{body}", encoding="utf-8")
    opened = browser.new_page()
    opened.goto(path.as_uri())
    yield opened
    opened.close()


class TestScoreboard:
    def shown(self, page: Page, real: Argument) -> dict[str, str]:
        found = page.eval_on_selector_all("li.claim", "items => items.map(e => e.dataset.verdict)")
        return dict(zip((claim.id for claim in real.board.claims), found, strict=True))

    def choose(self, page: Page, seeds: list[int]) -> None:
        page.evaluate(
            """seeds => { for (const box of document.querySelectorAll(".scoreboard input[type=checkbox]"))
                if (box.checked !== seeds.includes(Number(box.value))) box.click(); }""",
            [int(seed) for seed in seeds],
        )

    def judged(self, page: Page) -> list[str]:
        return list(page.eval_on_selector_all(".judged", "cells => cells.map(e => e.textContent)"))

    def test_without_its_script_it_has_every_claim_with_its_verdict_and_a_link(self, real: Argument) -> None:
        body = Scoreboard(real.board, "paper").to_html().split("<ol>")[1]
        verdicts = real.board.verdicts()
        for claim in real.board.claims:
            (item,) = re.findall(rf'<li class="claim" id="claim-{claim.id}".*?</a>', body, re.S)
            assert f'data-verdict="{verdicts[claim.id]}"' in item
            assert f'href="{claim.page}.html' in item
        assert len(re.findall('class="judged"', body)) == len(real.board.numbers)

    def test_any_seeds_are_judged_in_the_page_as_python_judges_them(self, page: Page, real: Argument) -> None:
        order = [n for claim in real.board.claims for n in real.board.numbers if n.claim.id == claim.id]
        for seeds in self.draws(real):
            self.choose(page, seeds)
            assert self.shown(page, real) == real.board.verdicts(seeds)
            assert self.judged(page) == [number.verdict(seeds) for number in order]

    def draws(self, real: Argument) -> list[list[int]]:
        """All seeds, the paper's, and some drawn."""
        source, every = np.random.default_rng(3), Scoreboard(real.board, "paper").seeds
        drawn = [list(source.choice(every, n, replace=False)) for n in (2, 3, 5, 9, 30)]
        return [every, [42, 137, 256, 512, 1024], *drawn]

    def test_it_works_with_the_keyboard_and_says_what_changed(self, page: Page, real: Argument) -> None:
        page.locator("[data-pick=all]").focus()
        page.keyboard.press("Enter")
        said = page.locator(".scoreboard-said")
        assert said.inner_text().startswith("Over all 64 seeds")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert said.inner_text().startswith("Over 5 seeds (42, 137, 256, 512, 1024)")
        page.locator("input[type=range]").focus()
        page.keyboard.press("ArrowRight")
        assert said.inner_text().startswith("Over 6 seeds")
        assert said.get_attribute("aria-live") == "polite"

    @pytest.mark.parametrize(
        ("rule", "broken"),
        [
            (
                "critical(p, p.found.n, k)",
                "critical(p, p.found.n, corrected)",
            ),  # no correction for many tests
            ("part.margin - Math.abs(mean)", "Math.abs(mean) - part.margin"),  # likeness read as difference
        ],
    )
    def test_a_broken_rule_is_noticed(
        self, real: Argument, browser: Browser, tmp_path: Path, rule: str, broken: str
    ) -> None:
        body = Scoreboard(real.board, "paper").to_html()
        assert rule in body
        (tmp_path / "page.html").write_text(
            f"<!doctype html><meta charset=utf-8>{body.replace(rule, broken)}"
        )
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        wrong = 0
        for seeds in self.draws(real):
            self.choose(page, seeds)
            wrong += self.shown(page, real) != real.board.verdicts(seeds)
        page.close()
        assert wrong


def with_table(argument: Argument, family: str, table: pl.DataFrame) -> Argument:
    main = argument.main
    return Argument(Evidence(main.rows, main.settings, main.curves, {family: table}), argument.own)


class TestInside:
    """Figures of parts of models, from tables whose numbers are known."""

    @pytest.fixture
    def parts(self, known: Argument) -> Argument:
        """Without the FFN a digit keeps the model's no-FFN accuracy over its place; without attention nothing."""
        rows = known.main.rows.filter(moment="first_best")
        none = [pl.lit(None, pl.Int32).alias(name) for name in ("operation", "carry", "layer", "head")]
        table = pl.concat(
            rows.select(
                "spec_id", "moment", (share * pl.col("no_ffn_accuracy") / (place + 1)).alias("accuracy")
            )
            .with_columns(component=pl.lit(component), how=pl.lit("zero"), position=pl.lit(place))
            .with_columns(none)
            for place in range(2)
            for component, share in (("ffn", 1), ("attention", 0))
        )
        return with_table(known, "ablation", table)

    def test_parts_are_drawn_from_the_tables_of_measures_beside_the_published(self, parts: Argument) -> None:
        figure = digits.by_digit(parts)
        found = data(figure).filter(arm="MoE", seed=42, component="ffn")
        assert dict(found.select("part", "value").iter_rows()) == pytest.approx({"ones": 50, "tens": 25})
        assert set(data(figure).filter(component="attention")["value"]) == {0}
        assert '"value":43.0' in to_json(drawn(figure).spec)

    def test_without_a_table_there_is_a_sentence(self, known: Argument) -> None:
        for figure in FIGURES:
            assert isinstance(figure(known), Text)

    def test_an_interval_is_claimed_of_many_seeds_and_of_one_none(self, parts: Argument) -> None:
        many = drawn(digits.by_digit(parts))
        assert "no interval" not in many.caption
        assert "6 seeds an arm" in to_json(many.spec)
        one = parts.main.families["ablation"].filter(
            pl.col("spec_id") == parts.main.families["ablation"]["spec_id"][0]
        )
        single = drawn(digits.by_digit(with_table(parts, "ablation", one)))
        assert "Where there is one seed, no interval is claimed" in single.caption
        assert "bootstrap" not in single.caption
        assert '"low"' not in to_json(single.spec)

    @pytest.mark.parametrize(
        ("value", "said"),
        [(17.204, "17.2"), (0.3, "0.30"), (0.00362, "0.0036"), (2e-6, "under 0.001"), (0.0, "0")],
    )
    def test_a_small_number_keeps_two_digits(self, parts: Argument, value: float, said: str) -> None:
        rows = digits.digit_rows(parts).head(1).with_columns(value=pl.lit(value))
        assert f">{said} (n" in part_mean(parts, rows)

    def test_a_part_in_a_sentence_says_its_n_interval_and_runs(self, parts: Argument) -> None:
        rows = digits.digit_rows(parts)
        said = part_mean(parts, rows, "%", arm="moe", part="ones", component="ffn", how="zero")
        assert ">52\u00a0% (51 to 54)<" in said
        assert "n = 6, 95 % CI 51 to 54" in said
        assert "runs of seeds 0, 42, 137, 256, 512, 1024" in said
        assert part_mean(parts, rows, arm="tree") == NOT_YET

    def test_the_readers_models_have_a_panel_of_their_own(self, parts: Argument) -> None:
        own = planted(number=2, profile="laptop")
        table = parts.main.families["ablation"].clear()
        ids = own.rows.filter(moment="first_best").select("spec_id", "moment")
        more = ids.with_columns(
            accuracy=pl.lit(0.7), component=pl.lit("ffn"), how=pl.lit("zero"), position=pl.lit(1)
        )
        own = Evidence(
            own.rows, own.settings, own.curves, {"ablation": pl.concat([table, more], how="diagonal_relaxed")}
        )
        figure = drawn(digits.by_digit(Argument(parts.main, own)))
        text = to_json(figure.spec)
        assert "Full scale: 6 seeds an arm" in text
        assert "This computer: 2 seeds an arm" in text
        assert set(data(figure).filter(lane="own")["value"]) == {70}

    def test_heads_are_ranked_within_their_model(self, known: Argument) -> None:
        rows = known.main.rows.filter(moment="first_best", arm="moe").select("spec_id", "moment")
        lost = [0.1, 0.4, 0.2, 0.3]
        none = [pl.lit(None, pl.Int32).alias(name) for name in ("operation", "carry", "position")]
        each = [
            rows.with_columns(
                component=pl.lit("head"), how=pl.lit("zero"), head=pl.lit(head), accuracy=pl.lit(1 - cost)
            )
            for head, cost in enumerate(lost)
        ]
        each.append(rows.with_columns(component=pl.lit("none"), accuracy=pl.lit(1.0)))
        table = pl.concat(each, how="diagonal_relaxed").with_columns(none)
        found = digits.head_rows(with_table(known, "ablation", table)).filter(seed=42)
        by_rank = dict(found.select("part", "value").iter_rows())
        assert by_rank == pytest.approx({"strongest head": 40, "second": 30, "third": 20, "weakest": 10})

    def test_both_directions_of_a_patch_are_their_mean(self, real: Argument) -> None:
        rows = causes.patching_rows(real)
        key = ["spec_id", "part", "component", "digit"]
        mean = rows.filter(pl.col("direction") != "both").group_by(key).agg(pl.col("value").mean(), pl.len())
        assert set(mean["len"]) == {2}
        both = rows.filter(direction="both").join(mean, on=key)
        assert both["value"].to_list() == pytest.approx(both["value_right"].to_list())

    def test_published_flip_rates_are_read_in_each_way_that_ours_are_counted(self, real: Argument) -> None:
        found = causes.readings(real)
        tens = published().filter(pl.col("measure").str.ends_with("flip_rate"), detail="digit=tens")
        for words, (column, directions) in causes.READINGS.items():
            apart = []
            for row in tens.iter_rows(named=True):
                rows = real.measured("patching", "add7", [row["arm"]]).filter(
                    pl.col("operation").is_in(directions),
                    ~pl.col("matched"),
                    component=row["measure"].removesuffix("_flip_rate"),
                    position=1,
                )
                apart.append(abs(float(np.mean(rows[column].to_list())) - row["value"]))
            assert found.filter(counted=words)["tens"].item() == pytest.approx(np.mean(apart), abs=1e-6)
        assert causes.nearest(found)["tens"].startswith("flips to the donor's answer")

    def test_components_sum_to_the_logit(self, real: Argument) -> None:
        rows = causes.attribution_rows(real).filter(pl.col("measure") != "norm")
        whole = pl.col("part") == "all together"
        key = ["spec_id", "digit", "measure"]
        sums = rows.group_by(key).agg(
            pl.col("value").filter(~whole).sum().alias("parts"),
            pl.col("value").filter(whole).sum().alias("whole"),
        )
        assert len(sums)
        assert sums["parts"].to_list() == pytest.approx(sums["whole"].to_list(), rel=1e-4, abs=1e-3)

    def test_the_probes_line_is_the_position_alone(self, real: Argument) -> None:
        text = to_json(drawn(causes.probes(real)).spec)
        assert "the position alone" in text
        assert '"part":"position"' not in text

    def test_neurons_are_all_counted(self, real: Argument) -> None:
        table = real.measured("neurons", "modular_addition", ("dense",), frequencies.MOMENTS)
        counted = frequencies.neuron_rows(real).filter(arm="dense")
        assert counted["neurons"].sum() == len(table) > 0

    def test_models_that_did_not_learn_can_be_left_out_where_they_are_many(self, real: Argument) -> None:
        figure = drawn(frequencies.fourier(real))
        tell, rows = Teller(real), data(figure)
        means = [
            r for table in figure.spec["datasets"].values() for r in table if r.get("models") == "learned"
        ]
        part = {"part": "all neurons", "convention": "full"}
        for arm in frequencies.ARMS:
            able = tell.learners("modular_addition", arm)
            own = rows.filter(arm=arm_label(arm), **part)
            assert sorted(own.filter("learned")["seed"]) == sorted(able)
            (found,) = (r for r in means if {**r, **part, "arm": arm_label(arm)} == r)
            assert found["n"] == len(able)
            assert found["mean"] == pytest.approx(own.filter("learned")["value"].mean(), rel=1e-4)
        assert len(rows.filter(~pl.col("learned"))) > 0
        assert "that learned the task" not in to_json(drawn(causes.patching(real)).spec), "four of 256 there"

    def test_every_figure_draws_from_the_committed_tables_within_its_weight(self, real: Argument) -> None:
        for figure in FIGURES:
            shown = drawn(figure(real))
            assert len(to_json(shown.spec)) < 200_000, shown.name
            assert len(data(shown)) > 0

    def test_a_pattern_is_of_one_model_and_its_rows_sum_to_one(self, real: Argument) -> None:
        rows = patterns.pattern_rows(real)
        whole = rows.group_by("spec_id", "head", "digit", "carry").agg(pl.col("weight").sum())["weight"]
        assert whole.to_list() == pytest.approx([1] * len(whole), abs=0.01)

    def test_the_head_that_moves_most_of_its_weight_when_a_carry_comes_in_is_told(
        self, known: Argument
    ) -> None:
        runs = known.main.rows.filter(moment="first_best").select("spec_id", "moment")
        weights = {  # by head: on token 0 and 1, without and with a carry; head 1 moves 0.6, head 0 nothing
            0: {0: (0.5, 0.5), 1: (0.5, 0.5)},
            1: {0: (0.9, 0.1), 1: (0.3, 0.7)},
        }
        looks = pl.DataFrame(
            [
                {"layer": 0, "head": head, "position": position, "key": key, "carry": carry, "weight": weight}
                for head, by_carry in weights.items()
                for carry, pattern in [*by_carry.items(), (2, (0.0, 1.0)), (None, (1.0, 0.0))]
                for key, weight in enumerate(pattern)
                for position in (0, 1)
                if position == 1 or carry is None
            ],
            schema=dict.fromkeys(("layer", "head", "position", "key", "carry"), pl.Int32)
            | {"weight": pl.Float32},
        ).with_columns(relation=pl.lit(None, pl.String))
        rows = patterns.shift_rows(with_table(known, "attention", runs.join(looks, how="cross")))
        assert set(rows["arm"]) == {"dense", "moe"}
        assert rows["value"].to_list() == pytest.approx([0.6] * len(rows))

    def test_the_committed_models_were_measured_at_the_moments_that_were_kept(self, real: Argument) -> None:
        store = Store(ROOT / "results" / "paper")
        kept = set(store.tables.checkpoints())
        assert kept
        assert set(real.main.families["attention"]["spec_id"]) >= kept


FIGURES = (
    digits.by_digit,
    digits.heads,
    patterns.patterns,
    causes.patching,
    causes.attribution,
    causes.probes,
    frequencies.fourier,
    frequencies.neurons,
    frequencies.restricted,
    counting.read_outs,
    counting.relations,
)
