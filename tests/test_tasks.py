"""The three tasks: what is asked, what is right, and what a strategy that computes nothing would score."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest
import torch
from scipy.stats import chisquare

from sparsity_moves.errors import UserError
from sparsity_moves.tasks import TASKS, Addition, Histogram, ModularAddition, generator
from sparsity_moves.tasks.histogram import compositions

PLUS_ADDEND, CARRY, NO_CARRY = 0, 1, 2
EOS = 11


class TestAddition:
    def test_497_plus_7_is_0504_ones_first(self):
        every = Addition().everything()
        assert every.tokens[497].tolist() == [7, 9, 4, EOS, 4, 0, 5, 0]
        assert every.targets[497].tolist() == [4, 0, 5, 0, EOS]
        assert Addition().render(every, 497) == "497 + 7 = 0504"

    def test_the_operations_of_497_are_add_then_carry_then_carry_then_no_carry(self):
        every = Addition().everything()
        assert every.operations[497].tolist() == [PLUS_ADDEND, CARRY, CARRY, NO_CARRY, -1]
        assert every.operations[995].tolist() == [PLUS_ADDEND, CARRY, CARRY, CARRY, -1]
        assert every.operations[492].tolist() == [PLUS_ADDEND, NO_CARRY, NO_CARRY, NO_CARRY, -1]
        assert Addition().operation_names == ("+7", "+1", "+0")

    @pytest.mark.parametrize(("digits", "addend"), [(1, 7), (2, 9), (3, 7), (3, 1), (4, 5)])
    def test_every_answer_and_operation_is_that_of_schoolbook_addition(self, digits, addend):
        task = Addition(digits, addend)
        every = task.everything()
        assert len(every) == 10**digits
        for n in range(0, 10**digits, 1 if digits < 4 else 37):
            carry, answer, operations = addend, [], [PLUS_ADDEND]
            for place in range(digits):
                digit = n // 10**place % 10 + carry
                answer.append(digit % 10)
                carry = digit // 10
                operations.append(CARRY if carry else NO_CARRY)
            answer.append(carry)
            given = [n // 10**place % 10 for place in range(digits)]
            assert every.tokens[n].tolist() == [*given, EOS, *answer]
            assert every.targets[n].tolist() == [*answer, EOS]
            assert every.operations[n].tolist() == [*operations, -1]

    def test_the_model_reads_eight_tokens_and_answers_at_positions_3_to_7(self):
        task = Addition()
        assert (task.vocabulary, task.length, task.read_out) == (12, 8, (3, 4, 5, 6, 7))
        assert task.scored == (0, 1, 2, 3), "the final EOS does not count"
        assert task.causal
        assert task.tied

    def test_chance_lines_are_those_of_the_fact_sheet(self):
        chance = list(Addition().chance().values())
        assert chance == pytest.approx([0.323, 0.556], abs=5e-4)
        assert chance[-1] == max(chance), "the strongest comes last"

    @pytest.mark.parametrize("digits", [0, 7])
    def test_too_few_or_many_digits_are_refused(self, digits):
        with pytest.raises(UserError, match=f"1 to 6 digits.*not {digits}"):
            Addition(digits=digits)

    @pytest.mark.parametrize("addend", [0, 10, -1])
    def test_an_addend_that_is_no_digit_is_refused(self, addend):
        with pytest.raises(UserError, match=f"one digit from 1 to 9, not {addend}"):
            Addition(addend=addend)


class TestModularAddition:
    @pytest.mark.parametrize("modulus", [2, 7, 31, 113])
    def test_all_pairs_are_asked_once_and_answered_right(self, modulus):
        task = ModularAddition(modulus, 0.3 if modulus > 2 else 0.5)
        pairs = task.evaluation(0, 0)
        seen = set()
        for (a, b, equals), (answer,), (operation,) in zip(
            pairs.tokens.tolist(), pairs.targets.tolist(), pairs.operations.tolist(), strict=True
        ):
            assert equals == modulus
            assert answer == (a + b) % modulus
            assert operation == (a + b) // modulus
            seen.add((a, b))
        assert len(seen) == len(pairs) == modulus**2

    def test_three_tenths_are_trained_on_and_the_rest_held_out(self):
        task = ModularAddition()
        pairs, pool = task.evaluation(42, 0), task.training_pool(42, 0, 0)
        assert len(pool) == int(0.3 * 113**2) == 3830
        trained = {tuple(pair) for pair in pool.tokens[:, :2].tolist()}
        held_out = {tuple(pair) for pair in pairs.tokens[pairs.held_out][:, :2].tolist()}
        assert trained.isdisjoint(held_out)
        assert len(trained | held_out) == 113**2

    def test_the_split_is_the_seeds_and_nothing_elses(self):
        task = ModularAddition(31)
        first, again, other = (task.evaluation(seed, 0).held_out for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(task.training_pool(1, 0, 0).tokens, task.training_pool(1, 5, 0).tokens)

    def test_the_split_favours_no_residue(self):
        pool = ModularAddition(31).training_pool(3, 0, 0)
        for column in (pool.tokens[:, 0], pool.tokens[:, 1], pool.targets[:, 0]):
            assert chisquare(column.bincount(minlength=31)[:31]).pvalue > 1e-4

    def test_chance_is_one_in_p_whatever_the_constant_answer(self):
        task = ModularAddition()
        assert list(task.chance().values()) == [1 / 113]
        assert set(task.evaluation(0, 0).targets.flatten().bincount().tolist()) == {113}

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"modulus": 1}, "from 2 to 512.*not 1"),
            ({"modulus": 513}, "from 2 to 512.*not 513"),
            ({"train_fraction": 0.0}, "strictly between 0 and 1, not 0.0"),
            ({"train_fraction": 1.0}, "strictly between 0 and 1, not 1.0"),
            ({"modulus": 2, "train_fraction": 0.1}, "leaves one side empty"),
        ],
    )
    def test_settings_without_a_task_are_refused(self, settings, reason):
        with pytest.raises(UserError, match=reason):
            ModularAddition(**settings)


def cut(n: int) -> dict[tuple[int, ...], float]:
    """The sampler's compositions, by playing all its choices: a second, plain account."""
    if n == 0:
        return {(): 1.0}
    if n == 1:
        return {(1,): 1.0}
    found: Counter = Counter()
    for first in range(1, n):
        for rest, probability in cut(n - first).items():
            found[(first, *rest)] += probability / (n - 1)
    return dict(found)


class TestHistogram:
    @pytest.mark.parametrize("task", [Histogram(), Histogram(8, 5), Histogram(14, 14), Histogram(40, 2)])
    def test_every_answer_is_the_symbols_count(self, task):
        drawn = task.sample(300, generator(0, "test"))
        for symbols, answers in zip(drawn.tokens.tolist(), drawn.targets.tolist(), strict=True):
            assert answers == [symbols.count(symbol) - 1 for symbol in symbols]
        assert torch.equal(drawn.operations, drawn.targets)
        assert int(drawn.tokens.max()) < task.alphabet

    @pytest.mark.parametrize("symbols", [2, 3, 6, 10])
    def test_compositions_have_their_exact_probabilities(self, symbols):
        ours, theirs = compositions(symbols), cut(symbols)
        assert ours.keys() == theirs.keys()
        assert all(sum(c) == symbols for c in ours)
        assert sum(ours.values()) == pytest.approx(1, abs=1e-12)
        for composition, probability in theirs.items():
            assert ours[composition] == pytest.approx(probability, rel=1e-12)
            rests = [symbols - sum(composition[:i]) for i in range(len(composition))]
            assert probability == pytest.approx(prod(1 / (n - 1) for n in rests if n > 1), rel=1e-12)

    def test_a_symbol_never_fills_the_whole_sequence(self):
        assert int(Histogram().sample(20_000, generator(1)).targets.max()) == 8

    def test_drawn_multisets_follow_the_compositions_by_chi_square(self):
        size, task = 40_000, Histogram(8, 6)
        expected: Counter = Counter()
        for composition, probability in cut(6).items():
            expected[tuple(sorted(composition))] += probability * size
        drawn = task.sample(size, generator(7, "chi-square"))
        seen = Counter(tuple(sorted(Counter(s).values())) for s in drawn.tokens.tolist())
        assert seen.keys() == expected.keys()
        assert chisquare([seen[k] for k in expected], list(expected.values())).pvalue > 1e-3

    def test_no_symbol_and_no_position_is_favoured(self):
        drawn = Histogram(8, 5).sample(20_000, generator(5))
        first = drawn.tokens[:, 0]  # one independent symbol a sequence
        assert chisquare(first.bincount(minlength=8)).pvalue > 1e-3
        share = (drawn.targets == 0).double().mean(0)
        assert float(share.max() - share.min()) < 0.02, "a count stands anywhere in the sequence"

    def test_chance_is_a_fifth_not_a_tenth(self):
        chance = Histogram().chance()
        assert chance["any one answer"] == 0.1
        assert chance["most frequent answer"] == pytest.approx(0.2, abs=1e-9)
        drawn = Histogram().sample(50_000, generator(2)).targets.flatten()
        assert float((drawn == 0).double().mean()) == pytest.approx(0.2, abs=0.005)

    def test_pools_and_evaluation_are_drawn_apart(self):
        """Apart, not disjoint: nine of one symbol and one of another is 1/9 of all draws and has 9920 forms."""
        task = Histogram()
        first, second = task.training_pool(42, 0, 10_000), task.training_pool(42, 1, 10_000)
        assert torch.equal(first.tokens, task.training_pool(42, 0, 10_000).tokens)
        pools = [{tuple(s) for s in pool.tokens.tolist()} for pool in (first, second)]
        for pool in pools:
            met = [tuple(s) in pool for s in task.evaluation(42, 3_000).tokens.tolist()]
            assert 0 < sum(met) / len(met) < 0.03
        assert len(pools[0] & pools[1]) < 0.03 * len(pools[0])

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"symbols": 1}, "2 to 14 symbols, not 1"),
            ({"symbols": 15}, "2 to 14 symbols, not 15"),
            ({"alphabet": 9}, "alphabet of 9 cannot give 10 different symbols"),
        ],
    )
    def test_settings_without_a_task_are_refused(self, settings, reason):
        with pytest.raises(UserError, match=reason):
            Histogram(**settings)


class TestEveryTask:
    @pytest.mark.parametrize("task", [kind() for kind in TASKS.values()], ids=list(TASKS))
    def test_the_chance_line_is_what_that_constant_strategy_scores(self, task):
        """No constant answer a position beats the strongest chance line."""
        drawn = task.evaluation(1, 20_000)
        answers = drawn.targets[:, list(task.scored)]
        best = torch.stack([column.bincount().max() for column in answers.T]).double().mean() / len(answers)
        assert float(best) <= list(task.chance().values())[-1] + 0.01

    def test_streams_of_randomness_never_coincide(self):
        draws = {
            tuple(torch.rand(3, generator=generator(*name)).tolist())
            for name in [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", 11), (0, "a1", 1)]
        }
        assert len(draws) == 7
