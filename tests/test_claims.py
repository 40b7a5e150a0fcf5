"""Claims and their verdicts: complete, decided by the tables alone, and wrong where the tables are made wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from sparsity_moves.errors import UserError
from sparsity_moves.figures.claim_words import draws_words
from sparsity_moves.figures.theme import arm_label
from sparsity_moves.store import Store
from sparsity_moves.studies import claims, parts, verdicts
from sparsity_moves.studies.claims import Claim, Part, Side
from sparsity_moves.studies.evidence import Evidence
from sparsity_moves.studies.published import published
from sparsity_moves.studies.verdicts import (
    FAILED,
    OPEN,
    PARTLY,
    REPRODUCED,
    STRONGER,
    UNDECIDED,
    UNMEASURED,
    Board,
    Number,
    Tested,
)

ROOT = Path(__file__).parents[1]
SEEDS = range(20)
NOISE = dict(zip(SEEDS, np.random.default_rng(0).normal(0, 5, len(SEEDS)), strict=True))


class TestTheFile:
    def test_every_published_number_belongs_to_exactly_one_claim(self) -> None:
        owned = [row for _, row in claims.numbers()]
        assert len(owned) == len(published())

    def test_a_number_that_no_claim_owns_is_not_passed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        all_but_one = [claim for claim in claims.claims() if claim.id != "patching"]
        monkeypatch.setattr(claims, "claims", lambda: all_but_one)
        with pytest.raises(UserError, match="0 claims own the published number add7 dense"):
            claims.numbers()

    def test_every_published_number_has_a_margin_that_is_stated_beforehand(self) -> None:
        for claim, row in claims.numbers():
            if row["measure"] != "p_value" and not claim.absent:
                assert claims.margin(row) > 0

    def test_where_the_paper_gives_a_spread_that_is_the_margin(self) -> None:
        (row,) = [
            r for _, r in claims.numbers() if r["arm"] == "narrow" and r["measure"] == "no_ffn_accuracy"
        ]
        assert claims.margin(row) == 5.3

    def test_every_claim_says_a_sentence_and_is_tested_or_owns_a_number(self) -> None:
        assert len({claim.id for claim in claims.claims()}) == len(claims.claims())
        for claim in claims.claims():
            assert claim.sentence.endswith(".")
            assert claim.source in claims.SOURCES
            assert claim.parts or claim.numbers
            assert claim.source == "paper" or not claim.numbers

    def test_every_claim_leads_to_a_page_and_a_figure_that_exist(self) -> None:
        sources = [*(ROOT / "src/sparsity_moves/figures").glob("*.py"), *(ROOT / "book").glob("*.md")]
        names = "\n".join(path.read_text() for path in sources)
        for claim in claims.claims():
            assert (ROOT / "book" / f"{claim.page}.md").exists(), claim.page
            assert not claim.figure or f'name="{claim.figure}"' in names, claim.figure

    def test_every_side_names_an_arm_that_exists(self) -> None:
        for claim in claims.claims():
            for side in (side for part in claim.parts for side in part.sides):
                assert side.chance or arm_label(side.arm)

    def test_a_side_is_an_arm_a_setting_and_a_moment(self) -> None:
        assert Side.read("moe norm=rms @final") == Side("moe", "norm=rms", "final")
        assert Side.read("dense") == Side("dense")
        assert Side.read("moe @final over dense @final") == Side(
            "moe", "", "final", over=Side("dense", "", "final")
        )
        assert Side.read("moe @final / digit=ones") == Side("moe", moment="final", detail="digit=ones")
        assert Side.read("chance:copy the digit, no overflow") == Side(chance="copy the digit, no overflow")


MORE = Part("more", "add7", "no_ffn_accuracy", (Side("moe"), Side("dense")))
SAME = replace(MORE, kind="same", margin=5.0)


def differences(mean: float) -> dict[int, float]:
    return {seed: mean + value for seed, value in NOISE.items()}


def verdict(*tested: Tested, seeds: list[int] | None = None) -> str:
    claim = Claim("c", "A sentence.", "paper", "page", tuple(t.part for t in tested))
    return Board({"c": list(tested)}, [], (claim,)).verdicts(seeds)["c"]


class TestVerdicts:
    """On a claim, by what its paired differences are."""

    @pytest.mark.parametrize(
        ("part", "mean", "expected"),
        [
            (MORE, 30, REPRODUCED),
            (MORE, -30, FAILED),
            (MORE, 0.2, UNDECIDED),
            (replace(MORE, margin=40), 30, FAILED),
            (SAME, 0.2, REPRODUCED),
            (SAME, 30, FAILED),
            (SAME, 5.5, UNDECIDED),
            (SAME, 5.1, UNDECIDED),
            (SAME, -30, FAILED),
        ],
    )
    def test_of_one_part(self, part: Part, mean: float, expected: str) -> None:
        assert verdict(Tested(part, differences(mean))) == expected

    def test_the_other_way_round_it_fails(self) -> None:
        """Mutation: the arms swapped."""
        swapped = {seed: -value for seed, value in differences(30).items()}
        assert verdict(Tested(MORE, swapped)) == FAILED

    @pytest.mark.parametrize(("published", "expected"), [(30, REPRODUCED), (10, STRONGER), (60, PARTLY)])
    def test_beside_the_published_effect(self, published: float, expected: str) -> None:
        assert verdict(Tested(MORE, differences(30), published=published, margin=5)) == expected

    def test_of_several_parts(self) -> None:
        good, bad, none = (Tested(MORE, d) for d in (differences(30), differences(-30), {}))
        assert verdict(good, good) == REPRODUCED
        assert verdict(good, bad) == PARTLY
        assert verdict(good, none) == PARTLY
        assert verdict(bad, none) == FAILED
        assert verdict(none, none) == UNMEASURED

    def test_two_seeds_decide_less_than_twenty(self) -> None:
        assert verdict(Tested(MORE, differences(3))) == REPRODUCED
        two = [min(NOISE, key=NOISE.__getitem__), max(NOISE, key=NOISE.__getitem__)]
        assert verdict(Tested(MORE, differences(3)), seeds=two) == UNDECIDED
        assert verdict(Tested(SAME, differences(0))) == REPRODUCED
        assert verdict(Tested(SAME, differences(0)), seeds=two) == UNDECIDED

    def test_one_seed_decides_nothing(self) -> None:
        assert verdict(Tested(MORE, differences(30)), seeds=[3]) == UNDECIDED

    def test_many_tests_of_nothing_are_corrected_for(self) -> None:
        """What one test alone would call a find, ninety-nine others beside it make luck."""
        p = 0.02
        source = np.random.default_rng(5)
        lucky = next(
            d for d in source.normal(0, 1, (5000, 20)) if 0 < verdicts.different(d) < p and d.mean() > 0
        )
        tested = [Tested(MORE, dict(zip(SEEDS, lucky, strict=True)))]
        assert verdict(*tested) == REPRODUCED
        others = [Tested(MORE, dict(zip(SEEDS, row, strict=True))) for row in source.normal(0, 1, (99, 20))]
        board = Board(
            {"c": tested, "d": others},
            [],
            tuple(Claim(i, "S.", "paper", "p", (MORE,)) for i in ("c", "d")),
        )
        assert board.corrected_for == 100
        assert board.verdicts()["c"] == UNDECIDED
        assert OPEN != REPRODUCED

    def test_how_often_five_seeds_would_do_is_counted(self) -> None:
        sure, rare = (Tested(MORE, differences(mean)) for mean in (100, 3))
        board = Board(
            {"sure": [sure], "rare": [rare]},
            [],
            tuple(Claim(i, "S.", "paper", "p", (MORE,)) for i in ("sure", "rare")),
        )
        found = board.of_five(draws=200)
        assert found["sure"] == 200
        assert 0 < found["rare"] < 120
        assert found == board.of_five(draws=200)

    def test_the_five_are_the_same_seeds_in_every_part(self) -> None:
        """A claim whose two parts are one: with the same five seeds both hold or none does."""
        once, twice = ([Tested(MORE, differences(3))] * n for n in (1, 2))
        found = [
            Board({"c": tested}, [], (Claim("c", "S.", "paper", "p", (MORE,)),)).of_five(draws=200)["c"]
            for tested in (once, twice)
        ]
        assert found[0] == found[1]

    def test_fives_are_of_the_seeds_that_all_parts_have(self) -> None:
        part = Tested(MORE, differences(100))
        fewer = Tested(MORE, {seed: value for seed, value in differences(100).items() if seed in SEEDS[:7]})
        board = Board({"c": [part, fewer]}, [], (Claim("c", "S.", "paper", "p", (MORE,)),))
        assert board.pairs(board.claims[0]) == 7
        assert board.of_five(draws=50) == {"c": 50}

    def test_the_p_that_is_shown_is_the_one_that_decides(self) -> None:
        """Whatever cannot be tested yet."""
        tested = [Tested(MORE, differences(mean)) for mean in (0.5, 3, 100)]
        with_others = [*tested, *(Tested(MORE, {}) for _ in range(20))]
        shown = [
            Board({"c": each}, [], (Claim("c", "S.", "paper", "p", (MORE,)),)).p()
            for each in (tested, with_others)
        ]
        assert shown[1][:3] == shown[0]
        assert shown[1][3:] == [None] * 20

    def test_five_seeds_cannot_be_drawn_from_fewer(self) -> None:
        enough, few = (Tested(MORE, dict.fromkeys(range(n), 9.0)) for n in (5, 3))
        board = Board(
            {"enough": [enough], "few": [few], "mixed": [enough, few], "none": [Tested(MORE, {})]},
            [],
            tuple(Claim(i, "S.", "paper", "p", (MORE,)) for i in ("enough", "few", "mixed", "none")),
        )
        assert board.of_five(draws=10) == {"enough": 10, "few": None, "mixed": None, "none": None}
        assert draws_words(7, 64) == "Of 1000 random draws of five of these 64 seeds, 7 show it."
        assert "one draw" in draws_words(1000, 5)
        assert draws_words(None, 3) == "Five seeds cannot be drawn: it has 3 pairs."

    def test_only_what_was_published_is_reproduced(self) -> None:
        ours = Claim("c", "S.", "ours", "p")
        assert verdicts.words(ours, REPRODUCED) == "holds"
        assert verdicts.words(replace(ours, source="paper"), REPRODUCED) == REPRODUCED


class TestNumbers:
    def number(self, measure: str, value: float, values: dict[int, float], margin: float = 5.0) -> Number:
        claim = Claim("c", "S.", "paper", "p")
        return Number(claim, {"measure": measure, "value": value}, values, margin=margin)

    @pytest.mark.parametrize(("published", "expected"), [(30, REPRODUCED), (35.1, PARTLY), (60, FAILED)])
    def test_of_a_number_by_its_interval_and_margin(self, published: float, expected: str) -> None:
        assert self.number("no_ffn_accuracy", published, differences(30)).verdict() == expected

    def test_few_seeds_are_too_wide_for_the_margin(self) -> None:
        assert self.number("no_ffn_accuracy", 30, differences(30)).verdict([0, 1, 2]) == PARTLY

    def test_a_p_is_reproduced_where_it_says_the_same(self) -> None:
        assert self.number("p_value", 0.56, differences(0)).verdict() == REPRODUCED
        assert self.number("p_value", 0.56, differences(30)).verdict() == FAILED

    def test_what_is_not_there_is_said_to_be_missing(self) -> None:
        assert self.number("no_ffn_accuracy", 30, {}).verdict() == UNMEASURED


@pytest.fixture(scope="module")
def board() -> Board:
    return verdicts.board(Evidence.of(Store(ROOT / "results" / "paper")))


class TestTheCommittedTables:
    """What does not change when more runs are merged: the headline, and that nothing is lost on the way."""

    def test_the_headline_is_reproduced_and_every_number_has_a_verdict_or_a_reason(
        self, board: Board
    ) -> None:
        assert board.verdicts()["sparse-shift"] in (REPRODUCED, STRONGER)
        assert len(board.numbers) == len(published())
        for number in board.numbers:
            assert number.verdict() != UNMEASURED or number.why

    @pytest.mark.parametrize(
        ("id", "mutation"),
        [
            ("sparse-shift", lambda d: {seed: -v for seed, v in d.items()}),  # the arms swapped
            ("frozen-router", lambda d: {seed: v + 20 for seed, v in d.items()}),  # a router that matters
            ("late-growth", lambda d: dict.fromkeys(d, 0.0)),  # the same checkpoint twice
            ("whole-answer", lambda d: {seed: v - 30 for seed, v in d.items()}),  # half the answer
        ],
    )
    def test_a_mutation_changes_the_verdict(
        self, board: Board, id: str, mutation: Callable[[dict[int, float]], dict[int, float]]
    ) -> None:
        tested = [replace(t, differences=mutation(t.differences)) for t in board.tested[id]]
        mutant = replace(board, tested=board.tested | {id: tested})
        assert board.verdicts()[id] in (REPRODUCED, STRONGER)
        assert mutant.verdicts()[id] not in (REPRODUCED, STRONGER)


class TestParts:
    """Numbers of a part of a model, from tables of measures whose answers are planted."""

    KEY: ClassVar = {"spec_id": "a", "moment": "first_best"}

    def row(self, measure: str, detail: str, setting: str = "") -> dict[str, str]:
        return {"measure": measure, "detail": detail, "setting": setting}

    def value(self, row: dict[str, str], table: list[dict[str, object]], family: str) -> float:
        found = parts.part(row)
        assert found is not None
        assert found[0] == family
        rows = pl.DataFrame([self.KEY | each for each in table], infer_schema_length=None)
        other = rows.with_columns(pl.lit("final").alias("moment"))  # must not be taken for it
        values = parts.values(row, pl.concat([rows, other.with_columns(pl.col(found[1]) + 1)]))
        (value,) = values.filter(**self.KEY)["value"]
        return float(value)

    def test_an_output_digit_and_a_carry_length_are_groups_of_the_ablation(self) -> None:
        groups = [
            (None, None, None),
            (0, None, None),
            (1, None, None),
            (None, 1, None),
            (None, None, 1),
            (1, None, 1),
        ]
        table = [
            {"component": component, "how": how, "position": p, "operation": o, "carry": c}
            | {
                "accuracy": 0.1 * place
                + (0.01 if component == "ffn" else 0)
                + (0.001 if how == "zero" else 0)
            }
            for place, (p, o, c) in enumerate(groups)
            for component in ("ffn", "attention")
            for how in ("zero", "mean")
        ]
        row = self.row("no_ffn_accuracy", "digit=tens")
        assert self.value(row, table, "ablation") == pytest.approx(0.211)
        row = self.row("no_ffn_accuracy", "carry_length=1")
        assert self.value(row, table, "ablation") == pytest.approx(0.411)

    def test_a_flip_rate_is_over_both_directions_and_unmatched_digits_as_published(self) -> None:
        table = [
            {"component": c, "position": p, "operation": o, "matched": m}
            | {"flip_rate": 0.1 * p + 0.2 * (o == 1) + 0.4 * m + (0.05 if c == "ffn" else 0)}
            for c in ("attention", "ffn")
            for p in (1, 2, 3)
            for o in (1, 2)
            for m in (True, False)
        ]
        row = self.row("attention_flip_rate", "digit=hundreds")
        assert self.value(row, table, "patching") == pytest.approx(0.3)
        assert self.value(self.row("ffn_flip_rate", "digit=hundreds"), table, "patching") == pytest.approx(
            0.35
        )

    def test_fourier_numbers_are_of_neurons_of_the_first_component_and_of_the_experts_weights(self) -> None:
        def rows(site: str, expert: int | None, values: list[float]) -> list[dict[str, object]]:
            return [
                {"site": site, "expert": expert, "index": i, "full": v, "paired": 2 * v}
                for i, v in enumerate(values)
            ]

        table = [
            *rows("neurons", None, [0.3]),
            *rows("live_neurons", None, [0.4]),
            *rows("components", None, [0.45, 0.1]),
        ]
        dense = [*table, *rows("weights", None, [0.2, 0.4])]
        experts = [*dense, *rows("weights", 0, [0.1, 0.1]), *rows("weights", 1, [0.3, 0.3])]
        for detail, expected in (("per neuron", 0.3), ("top principal component", 0.45), ("weights", 0.3)):
            row = self.row("fourier_concentration", detail, "convention=full")
            assert self.value(row, dense, "fourier") == pytest.approx(expected)
        assert self.value(row, experts, "fourier") == pytest.approx(0.2)

    def test_every_published_detail_has_a_table(self) -> None:
        for _, row in claims.numbers():
            if (
                row["detail"]
                and not row["detail"].endswith("of the arms")
                and row["measure"] != "training_time"
            ):
                assert parts.part(row) is not None, row

    def test_a_table_of_measures_makes_its_claims_measured(self, board: Board) -> None:
        evidence = Evidence.of(Store(ROOT / "results" / "paper"))
        runs = (
            evidence.models("add7", "moe")
            .vstack(evidence.models("add7", "dense"))
            .filter(moment="first_best")
        )
        table = pl.concat(
            runs.select("spec_id", "moment", (pl.col("no_ffn_accuracy")).alias("accuracy")).with_columns(
                pl.lit("ffn").alias("component"),
                pl.lit("zero").alias("how"),
                pl.lit(position).alias("position"),
                pl.lit(None, pl.Int32).alias("operation"),
                pl.lit(None, pl.Int32).alias("carry"),
            )
            for position in range(4)
        )
        more = Evidence(evidence.rows, evidence.settings, evidence.curves, {"ablation": table})
        assert board.verdicts()["every-digit"] == UNMEASURED or "ablation" in evidence.families
        assert verdicts.board(more).verdicts()["every-digit"] in (REPRODUCED, STRONGER)

    def test_a_model_that_never_grokked_counts_with_its_last_step(self, board: Board) -> None:
        evidence = Evidence.of(Store(ROOT / "results" / "paper"))
        (whole, *_) = board.tested["grok-sooner"]
        assert (whole.part.sides[0].arm, whole.part.sides[1].arm) == ("dense", "moe")

        def without(arm: str, *seeds: int) -> Tested:
            gone = (pl.col("moment") == "grokked") & pl.col("seed").is_in(seeds) & (pl.col("arm") == arm)
            rows = evidence.rows.filter(~gone)
            return verdicts.board(Evidence(rows, evidence.settings, evidence.curves)).tested["grok-sooner"][0]

        dense, moe = (
            dict(evidence.at(whole.part.row(side), "grokked").select("seed", "step").iter_rows())
            for side in whole.part.sides
        )
        last = 40_000.0
        assert without("dense", 42).differences == whole.differences | {42: last - moe[42]}
        assert without("moe", 42).differences == whole.differences | {42: dense[42] - last}
        none = without("moe", *moe).differences
        assert none == {seed: dense[seed] - last for seed in dense}
        assert np.mean([*none.values()]) < 0, "an arm that never groks does not grok sooner"
