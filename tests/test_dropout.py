"""Dropout's mask is a function of seed, step, component and element; it acts in training and nowhere else."""

from __future__ import annotations

import random

import pytest
import torch

from sparsity_moves.measures import measure
from sparsity_moves.studies import arm
from sparsity_moves.training import Spec, train
from sparsity_moves.training.data import batches
from sparsity_moves.training.dropout import ADDEND, FACTOR, MASK, Dropout
from sparsity_moves.training.fleet import Fleet

CPU = torch.device("cpu")
SHAPE = torch.Size((3, 50, 4, 32))


def spec(seed: int = 42, rate: float = 0.3, **more) -> Spec:
    return arm("dense", "smoke", "add7", seed, dropout=rate, **more)


def masks(seeds=(1, 2, 3), step: int = 0, component: int = 0, rate: float = 0.3) -> torch.Tensor:
    dropout = Dropout([spec(seed, rate) for seed in seeds], CPU)
    dropout.at(step)
    return dropout.keeps(component, torch.Size((len(seeds), *SHAPE[1:])))


def hashed(x: int, key: int) -> int:
    """The same hash, one number at a time."""
    x = (x + key) & MASK
    x ^= x >> 16
    x = (x * FACTOR + key) & MASK
    x ^= x >> 16
    x = x * FACTOR & MASK
    return x ^ x >> 16


class TestTheMask:
    def test_it_is_this_function_of_the_numbers(self):
        """Exact integers: so it is the same on every device."""
        kept = masks((5, 2**31), step=7, component=1).flatten(1)
        for model, seed in enumerate((5, 2**31)):
            key = hashed(7, hashed(seed, 2 * ADDEND & MASK))
            expected = [hashed(i, key) >= int(0.3 * 2**32) for i in range(kept.shape[1])]
            assert kept[model].tolist() == expected

    @pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
    def test_so_many_are_dropped(self, rate):
        """Within four standard errors, over all and in every unit."""
        dropped = 1 - torch.stack([masks(step=step, rate=rate) for step in range(40)]).double()
        error = (rate * (1 - rate) / dropped.numel()) ** 0.5
        assert abs(float(dropped.mean()) - rate) < 4 * error
        by_unit = dropped.mean((0, 1, 2, 3))
        assert float((by_unit - rate).abs().max()) < 4.5 * error * len(by_unit) ** 0.5

    def test_what_is_near_in_seed_step_or_place_has_nothing_to_do_with_each_other(self):
        """Four standard errors of the correlation between two masks, each shifted by a few elements too."""
        one = masks((1, 2, 256), step=10)
        others = [
            masks((1, 2, 256), step=11),
            masks((1, 2, 256), step=10, component=1),
            masks((2, 3, 257), 10),
        ]
        others += [masks((1, 2, 256), step=s) for s in (0, 9, 74, 10 + 2**16)]
        others += [one.roll(1, 0), *(one.flatten(1)[:, k:] for k in (1, 2, 16, 32, 128))]
        for other in others:
            a, b = one.flatten(1).double() - 0.7, other.flatten(1).double() - 0.7
            both = min(len(a), len(b)), min(a.shape[1], b.shape[1])
            a, b = (x[: both[0], : both[1]].flatten() for x in (a, b))
            assert abs(float((a * b).mean()) / 0.21) < 4.5 / len(a) ** 0.5

    def test_it_is_the_models_own_whatever_stands_next_to_it(self):
        assert torch.equal(masks((1, 2, 3))[1:], masks((2, 3)))


class TestTraining:
    """Where it acts."""

    @pytest.mark.parametrize(("at", "names"), [("outputs", ["attention", "ffn"]), ("hidden", ["hidden"])])
    def test_kept_units_grow_by_what_is_lost_on_average(self, at, names):
        dropout = Dropout([spec(dropout_at=at, depth=2)], CPU)
        edits = dropout.edits()
        assert list(edits) == [f"{layer}.{name}" for layer in (0, 1) for name in names]
        for component, edit in enumerate(edits.values()):
            x = torch.ones(1, *SHAPE[1:])
            assert torch.equal(edit(x), dropout.keeps(component, x.shape) * torch.tensor(1 / 0.7))

    def test_the_loss_is_that_of_the_dropped_units_and_without_them_of_none(self):
        tokens, targets = next(iter(batches([spec()], CPU)))
        losses = [Fleet([spec(rate=rate)]).loss(tokens, targets)[0].item() for rate in (0.0, 1e-9, 0.3)]
        assert losses[0] == losses[1] != losses[2]

    def test_every_step_drops_others(self):
        """With a learning rate of zero, one batch and no dropout every step would lose the same."""
        models = Fleet([spec(learning_rate=0.0, weight_decay=0.0)])
        batch = next(iter(batches(models.specs, CPU)))
        assert len({float(models.step(*batch)) for _ in range(5)}) == 5

    @pytest.mark.parametrize("at", ["outputs", "hidden"])
    def test_it_learns_and_looks_and_measures_are_of_the_whole_model(self, at):
        (run,) = train([spec(rate=0.1, dropout_at=at, steps=200, evaluate_every=100)])
        assert run.curve["loss"][-1] < run.curve["loss"][0]
        (rows,) = measure([run])
        of = {row["moment"]: row["accuracy"] for row in rows}
        assert of["final"] == run.curve["accuracy"][-1]
        assert of["final"] > 0.5

    def test_a_seed_like_any_other_number(self):
        random.seed(0)
        for seed in (0, 2**40 + 3, random.randrange(2**62)):
            assert 0.6 < float(masks((seed,)).double().mean()) < 0.8
