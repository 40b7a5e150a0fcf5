"""Linear probes and read-outs: what is there is read, what is not there is not, and position alone is no success."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sparsity_moves.measures.probes import CODE, PAPER, Recipe, fit, probes, read
from sparsity_moves.measures.strategy import strategy
from sparsity_moves.tasks import Addition, generator, stacked
from test_measures import ARRANGED, PLANTED, SEED, answer_in_attention, asked, balanced, empty
from test_measures_parts import initial, rows, subject

LONG = Recipe("long", 0.1, 3000, 0, False, 1.0, anneal=True)
BLIND = 0.90575
"""What the position alone tells of add-7's operations: (1 + 0.7 + 0.93 + 0.993) / 4."""


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(SEED, "features", *shape))


class TestFit:
    def overlapping(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Three classes in five dimensions that no line parts, so that the optimum is a point."""
        labels = torch.arange(600) % 3
        centres = noise(3, 5)
        return centres[labels] + noise(600, 5), labels

    def test_it_finds_scikit_learns_regression(self):
        features, labels = self.overlapping()
        weight, bias = fit(features[None].double(), labels[None], 3, LONG)
        ours = (features.double() @ weight[0] + bias[0]).softmax(-1)
        theirs = LogisticRegression(C=1e10, tol=1e-10, max_iter=10_000).fit(features.numpy(), labels.numpy())
        expected = torch.from_numpy(theirs.predict_proba(features.numpy()))
        assert float((ours - expected).abs().max()) < 1e-4

    def test_its_steps_are_pytorchs_adam(self):
        features, labels = self.overlapping()
        batches = torch.stack([torch.randperm(600, generator=generator(s))[:50] for s in range(20)])[:, None]
        recipe = Recipe("short", 1e-2, 20, 50, False, 1.0)
        weight, bias = fit(features[None].double(), labels[None], 3, recipe, batches)
        layer = torch.nn.Linear(5, 3).double()
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
        for batch in batches[:, 0]:
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(layer(features[batch].double()), labels[batch]).backward()
            optimiser.step()
        assert torch.allclose(weight[0].T, layer.weight, rtol=1e-9, atol=1e-12)
        assert torch.allclose(bias[0, 0], layer.bias, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("recipe", [PAPER, CODE])
    def test_a_probe_does_not_depend_on_the_others(self, recipe):
        features, labels = noise(5, 200, 7), torch.arange(200).expand(5, -1) % 3
        batches = (
            torch.randint(200, (recipe.steps, 5, recipe.batch), generator=generator(0))
            if recipe.batch
            else None
        )
        together, _ = fit(features, labels, 3, recipe, batches)
        for some in ([0], [3, 1]):
            own = batches[:, some] if batches is not None else None
            alone, _ = fit(features[some], labels[some], 3, recipe, own)
            assert torch.equal(alone, together[some])


class TestRead:
    task = Addition(digits=3)

    def operations(self, models: int = 1) -> torch.Tensor:
        return self.task.everything().operations[None, :, :4].repeat(models, 1, 1)

    def noise_tells_no_more_than_position(self, features: torch.Tensor) -> None:
        """The claim that a probe of what knows nothing makes: nothing beyond the baseline."""
        found = read({"noise": features}, self.operations(), 3, PAPER, [SEED])
        assert found["noise"].mean() < found["position"].mean() + 0.01

    def test_the_position_alone_is_right_in_ninety_per_cent(self):
        found = read({"noise": noise(1, 1000, 4, 4)}, self.operations(), 3, CODE, [SEED])
        assert found["position"].mean().item() == pytest.approx(BLIND, abs=1e-12)
        assert found["position"][0].tolist() == pytest.approx([1, 0.7, 0.93, 0.993], abs=1e-12)

    def test_noise_tells_nothing(self):
        self.noise_tells_no_more_than_position(noise(1, 1000, 4, 16))

    def test_leaked_labels_are_caught(self):
        leaked = torch.nn.functional.one_hot(self.operations(), 3) * 10.0
        with pytest.raises(AssertionError):
            self.noise_tells_no_more_than_position(torch.cat([noise(1, 1000, 4, 16), leaked], -1))

    def test_what_is_there_is_read_and_stands_for_its_place(self):
        there = torch.nn.functional.one_hot(self.operations(), 3) * 3.0
        found = read({"noise": noise(1, 1000, 4, 3), "there": there}, self.operations(), 3, PAPER, [SEED])
        assert found["there"].min() == 1
        assert found["noise"].mean() < 0.95

    def test_it_is_measured_on_inputs_that_the_probe_never_saw(self):
        """Every input has a label of its own at random, and features enough to know each by heart."""
        labels = torch.randint(3, (1, 60, 1), generator=generator(SEED))
        known = torch.eye(60)[None, :, None] * 10
        by_heart = Recipe("all", 0.1, 300, 0, False, 1.0)
        held_out = Recipe("split", 0.1, 300, 0, False, 0.5)
        assert read({"x": known}, labels, 3, by_heart, [SEED])["x"].item() == 1
        assert read({"x": known}, labels, 3, held_out, [SEED])["x"].item() < 0.7

    def test_two_models_are_split_and_read_each_by_its_seed(self):
        features = noise(2, 1000, 4, 6)
        both = read({"x": features}, self.operations(2), 3, PAPER, [1, 2])
        second = read({"x": features[1:]}, self.operations(), 3, PAPER, [2])
        assert torch.equal(both["x"][1:], second["x"])
        assert not torch.equal(both["position"][:1], second["position"]), "another split"


def test_the_table_says_what_was_read_where():
    table = rows(probes(initial("moe", "add7")))
    assert set(table.filter(recipe="paper")["site"]) == {
        "position",
        "attention",
        "ffn",
        "embedding",
        "residual",
    }
    assert set(table.filter(recipe="code")["site"]) == {"position", "attention", "ffn"}
    for _, group in table.group_by("recipe", "site"):
        whole = group.filter(group["position"].is_null())
        parts = group.filter(group["position"].is_not_null())
        assert whole["accuracy"].item() == pytest.approx(parts["accuracy"].mean(), abs=1e-6)


class TestStrategy:
    def planted(self, where: str):
        """Says whether a symbol is the first one's. Attention brings the first symbol; by `relation` it writes the
        answer at once (to the first symbol's own answer), by `inventory` the FFN compares the two symbols."""
        tokens = balanced()
        if where == "relation":
            answers = ARRANGED[tokens[:, :1]].expand(50, 5).contiguous()
            return subject(PLANTED, answer_in_attention(), asked(answers, tokens))
        tokens = torch.randint(5, (400, 5), generator=generator(SEED, "tokens"))
        p = answer_in_attention()
        p["0.attention.out"] = empty(PLANTED)["0.attention.out"]
        p["0.attention.out"][0, torch.arange(5), 10 + torch.arange(5)] = 1
        p["0.ffn.w_in"][0, torch.arange(5), torch.arange(5)] = 4
        p["0.ffn.w_in"][0, 10 + torch.arange(5), torch.arange(5)] = 4
        p["0.ffn.b_in"][0, :5] = -4  # both the same
        p["0.ffn.w_out"][0, :5, 15] = 1
        return subject(PLANTED, p, asked((tokens == tokens[:, :1]).long(), tokens))

    def the_strategy_is(self, name: str, where) -> None:
        table = rows(strategy(where))
        assert set(table["strategy"]) == {name}
        lift = dict(table.select("site", "lift").iter_rows())
        accuracy = dict(table.select("site", "accuracy").iter_rows())
        assert accuracy["ffn"] > 0.95
        assert max(lift["attention"], lift["ffn"]) > 0.15
        assert min(lift["attention"], lift["ffn"]) < 0.1

    @pytest.mark.parametrize("name", ["relation", "inventory"])
    def test_a_planted_strategy_is_named(self, name):
        self.the_strategy_is(name, self.planted(name))

    def test_the_other_strategy_is_caught(self):
        with pytest.raises(AssertionError):
            self.the_strategy_is("inventory", self.planted("relation"))


def test_shuffled_labels_are_not_read():
    """The same features and labels, but one another's."""
    task = Addition(digits=3)
    labels = task.everything().operations[None, :, :4]
    there = torch.nn.functional.one_hot(labels, 3) * 3.0
    shuffled = there[:, torch.randperm(1000, generator=generator(SEED))]
    found = read({"x": shuffled}, labels, 3, PAPER, [SEED])
    assert found["x"].mean() < found["position"].mean() + 0.01
    assert stacked([task.everything()]).operations.shape == (1, 1000, 5)
