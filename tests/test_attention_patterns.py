"""Attention patterns: heads whose pattern is known, an independent reference, and mistakes that must be noticed."""

from __future__ import annotations

from collections import defaultdict

import polars as pl
import pytest
import torch

from sparsity_moves.measures import attention
from sparsity_moves.measures.attention import attention_patterns
from sparsity_moves.measures.tidy import Subject
from sparsity_moves.model import Architecture, FeedForward, forward, stack
from sparsity_moves.tasks import Addition, Histogram, ModularAddition, Sequences, Task
from sparsity_moves.tasks.task import stacked


def subject(task: Task, seeds: list[int], depth: int = 1, sequences: Sequences | None = None) -> Subject:
    architecture = Architecture(task, 16, 2, depth=depth, ffn=FeedForward(4))
    parameters = stack([architecture.initialise(seed) for seed in seeds])
    each = sequences or inputs(task, seeds)
    return Subject(architecture, parameters, each, seeds)


def inputs(task: Task, seeds: list[int]) -> Sequences:
    def one(seed: int) -> Sequences:
        return task.everything() if isinstance(task, Addition) else task.evaluation(seed, 40)

    return stacked([one(seed) for seed in seeds])


def rows(subject: Subject, model: int = 0) -> pl.DataFrame:
    return pl.DataFrame(attention_patterns(subject)[model], infer_schema_length=None)


def silent(where: Subject) -> Subject:
    """Every weight is zero, so that every pattern is uniform."""
    zero = {name: torch.zeros_like(value) for name, value in where.parameters.items()}
    return Subject(where.architecture, zero, where.sequences, where.seeds)


class TestKnownPatterns:
    def test_without_weights_every_token_that_is_seen_gets_alike(self) -> None:
        task = Addition(digits=2)
        found = rows(silent(subject(task, [1]))).filter(pl.col("carry").is_null())
        for position, weight in found.select("position", "weight").iter_rows():
            assert weight == pytest.approx(1 / (task.read_out[position] + 1))

    def looks_at_the_first(self) -> None:
        """Head 0 looks at the first token from everywhere; head 1 at all alike."""
        where = silent(subject(Addition(digits=2), [1]))
        p = where.parameters
        p["position"][0, :, 0] = 1
        p["position"][0, 0, 1] = 50
        p["0.attention.qkv"][0, 0, 0] = p["0.attention.qkv"][0, 1, 16] = 1
        found = rows(where).filter(pl.col("carry").is_null(), key=0)
        weights = {head: group["weight"].to_list() for (head,), group in found.group_by("head")}
        assert weights[0] == pytest.approx([1] * len(weights[0]), abs=1e-4)
        assert max(weights[1]) < 0.5

    def test_a_planted_head_is_found_where_it_looks(self) -> None:
        self.looks_at_the_first()

    def test_a_pattern_of_other_tokens_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = attention._by_group
        monkeypatch.setattr(attention, "_by_group", lambda *args: real(*args).roll(1, -1))
        with pytest.raises(AssertionError):
            self.looks_at_the_first()

    def test_where_a_symbol_looks_for_its_like_that_is_what_is_seen(self) -> None:
        task = Histogram(alphabet=8, symbols=5)
        where = silent(subject(task, [1]))
        p = where.parameters
        p["embed"][0, :, :8] = torch.eye(8)
        p["0.attention.qkv"][0, torch.arange(8), torch.arange(8)] = 20
        p["0.attention.qkv"][0, torch.arange(8), 16 + torch.arange(8)] = 20
        own, same, other = rows(where).filter(head=0)["weight"].to_list()
        assert own > same, "a symbol that stands alone has nothing else to look at"
        assert other == pytest.approx(0, abs=1e-4)
        assert same > 0.2
        assert rows(where).filter(head=1)["weight"].to_list() == pytest.approx([0.2] * 3)


def slowly(where: Subject) -> dict[tuple[object, ...], float]:
    """The same by loops over inputs, and carries by arithmetic."""
    task, sequences = where.architecture.task, where.sequences
    trace = forward(where.architecture, where.parameters, sequences.tokens)
    layer = trace.layers[-1]
    assert layer.pattern is not None
    sums: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for n, tokens in enumerate(sequences.tokens[0].tolist()):
        carry = None
        if isinstance(task, Addition):
            rest, carry = task.addend, -1
            for digit in tokens[: task.digits]:
                rest = (digit + rest) // 10
                carry += 1
                if not rest:
                    break
            else:
                carry += 1
        for head in range(2):
            for r in task.scored:
                place = task.read_out[r]
                for k, token in enumerate(tokens):
                    weight = float(layer.pattern[0, n, head, r, k])
                    if isinstance(task, Histogram):
                        relation = "self" if k == place else "same" if token == tokens[place] else "other"
                        sums[head, relation].append(weight)
                    elif not (task.causal and k > place):
                        sums[head, None, r, k].append(weight)
                        if carry is not None:
                            sums[head, carry, r, k].append(weight)
    return {key: sum(values) / len(values) for key, values in sums.items()}


TASKS = [Addition(digits=2), ModularAddition(7, 0.5), Histogram(alphabet=8, symbols=5)]


class TestReference:
    def agrees(self, task: Task) -> None:
        where = subject(task, [3])
        table = rows(where).drop_nulls("weight")
        names = ("head", "relation") if isinstance(task, Histogram) else ("head", "carry", "position", "key")
        found = {key: w for *key_, w in table.select(*names, "weight").iter_rows() if (key := tuple(key_))}
        assert found == pytest.approx(slowly(where), abs=1e-6)

    @pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
    def test_means_are_those_of_a_loop(self, task: Task) -> None:
        self.agrees(task)

    def test_shuffled_carries_are_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = attention.carries
        monkeypatch.setattr(attention, "carries", lambda s: {k: v.roll(7, 1) for k, v in real(s).items()})
        with pytest.raises(AssertionError):
            self.agrees(TASKS[0])

    def test_relations_that_are_mixed_up_are_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = attention.relations
        monkeypatch.setattr(attention, "relations", lambda *args: real(*args).flip(0))
        with pytest.raises(AssertionError):
            self.agrees(TASKS[2])

    def test_two_models_are_told_apart_and_lower_layers_are_there(self) -> None:
        where = subject(TASKS[0], [3, 4], depth=2)
        assert set(rows(where)["layer"]) == {0, 1}
        assert rows(where, 0)["weight"].to_list() != rows(where, 1)["weight"].to_list()
        alone = subject(TASKS[0], [4], depth=2)
        assert rows(alone).equals(rows(where, 1))
