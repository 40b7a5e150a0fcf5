"""Fleets against a plain loop; models that do not feel their neighbours; the moments; what goes wrong is recorded."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch

import reference
from sparsity_moves.errors import UserError
from sparsity_moves.measures import measure
from sparsity_moves.studies import ARMS, arm
from sparsity_moves.studies.arms import TREES
from sparsity_moves.tasks import stacked
from sparsity_moves.training import Spec, correct, fleet, settings, train
from sparsity_moves.training.data import batches
from sparsity_moves.training.fleet import Fleet

TASKS = ("add7", "modular_addition", "histogram")
CPU = torch.device("cpu")


def tiny(name: str, task: str, seed: int = 42, **more) -> Spec:
    """A run that the reference's loops can follow."""
    size = {"add7": {"digits": 1}, "modular_addition": {"modulus": 5}, "histogram": {"symbols": 3}}[task]
    size |= {"d_model": 16, "batch": 4, "steps": 50, **more}
    return arm(name, "smoke", task, seed, width=24, **size)


def trained(specs: list[Spec]) -> list[dict[str, torch.Tensor]]:
    """Every model's parameters after its last step."""
    models = Fleet(specs)
    for tokens, targets in batches(specs, CPU):
        models.step(tokens, targets)
    return [models.snapshot(i) for i in range(len(specs))]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- The plain loop -------------------------------------------------------------------------------------------------

PLAIN = [(task, name, {}) for task in TASKS for name in ("dense", "moe_switch")]
PLAIN += [("add7", name, {}) for name in ("moe", "moe_frozen", "moe_unbalanced", "moe_top2", "moe_hash")]
PLAIN += [("add7", "moe", {"norm": "rms", "depth": 2}), ("add7", "moe", {"balance_positions": "read_out"})]
PLAIN += [
    ("modular_addition", "moe_switch", {"norm": "rms"}),
    ("histogram", "moe_glu_frozen", {"redraw_every": 20}),
]


@pytest.mark.parametrize(("task", "name", "more"), PLAIN, ids=["-".join((t, n, *m)) for t, n, m in PLAIN])
def test_fifty_steps_stay_with_the_plain_loop(task, name, more):
    """Same batches, same start: the loss within 1e-4 at every step, and the parameters after the last."""
    specs = [tiny(name, task, seed, **more) for seed in (1, 2)]
    models = Fleet(specs)
    ours = torch.stack([models.step(tokens, targets) for tokens, targets in batches(specs, CPU)])
    for i, spec in list(enumerate(specs))[1:]:
        drawn = [(tokens[i], targets[i]) for tokens, targets in batches(specs, CPU)]
        theirs, parameters = reference.train(spec, spec.architecture.initialise(spec.seed), drawn)
        assert len(drawn) == 50
        assert float((ours[:, i] - torch.tensor(theirs)).abs().max()) < 1e-4
        assert sum(theirs[-10:]) < sum(theirs[:10]), "it learns"
        snapshot = models.snapshot(i)
        assert max(float((snapshot[n] - t).abs().max()) for n, t in parameters.items()) < 1e-3


def test_the_comparison_would_see_a_missing_balance_loss():
    """The same test with one thing wrong fails."""
    specs = [tiny("moe_switch", "add7", balance_weight=0.5)]
    models = Fleet(specs)
    ours = torch.stack([models.step(tokens, targets)[0] for tokens, targets in batches(specs, CPU)])
    drawn = [(tokens[0], targets[0]) for tokens, targets in batches(specs, CPU)]
    wrong = replace(specs[0], balance_weight=0.0)
    theirs, _ = reference.train(wrong, wrong.architecture.initialise(wrong.seed), drawn)
    assert float((ours - torch.tensor(theirs)).abs().max()) > 1e-4


def test_a_frozen_router_stays_and_an_unbalanced_one_only_decays():
    """With balance weight 0 the renormalised top-1 router has no gradient at all: weight decay alone moves it."""
    for name, factor in (("moe_frozen", 1.0), ("moe_unbalanced", (1 - 1e-3 * 0.01) ** 50)):
        spec = tiny(name, "add7")
        start, end = spec.architecture.initialise(spec.seed), trained([spec])[0]
        assert torch.allclose(end["0.ffn.router"], start["0.ffn.router"] * factor, rtol=1e-5, atol=0)
        assert not torch.equal(end["0.ffn.w_in"], start["0.ffn.w_in"])


# --- Neighbours -----------------------------------------------------------------------------------------------------


def test_a_models_huge_gradient_does_not_clip_its_neighbours():
    specs = [tiny("dense", "add7", seed, clip=1.0) for seed in (1, 2)]
    tokens, targets = next(iter(batches(specs, CPU)))
    found = []
    for scale in (1.0, 1e4):
        models = Fleet(specs)
        with torch.no_grad():
            models.parameters["embed"][1] *= scale
        models.step(tokens, targets)
        norms = torch.linalg.vector_norm(models.gradient, dim=1)
        assert float(norms.max()) <= 1 + 1e-5
        found.append((models.gradient[0].clone(), models.snapshot(0), norms[1]))
    assert torch.equal(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])
    assert float(found[1][2]) > 0.99, "the neighbour was clipped"


def test_no_clipping_where_the_gradient_is_small_or_clip_is_zero():
    for clip in (0.0, 1e6):
        spec = tiny("dense", "add7", clip=clip)
        models = Fleet([spec])
        tokens, targets = next(iter(batches([spec], CPU)))
        gradients = torch.autograd.grad(models.loss(tokens, targets)[1].sum(), models.trained)
        models.step(tokens, targets)
        flat = torch.cat([g.flatten() for g in gradients])
        assert torch.equal(models.gradient[0, : len(flat)], flat)


STACKED = [
    (task, name, {}) for task in TASKS for name in ("dense", "glu", "moe", "moe_glu", "moe_switch_unbalanced")
]
STACKED += [
    ("modular_addition", "moe_top2", {"d_model": 12}),
    ("modular_addition", "narrow", {"width": 20}),
    ("add7", "narrow", {"d_model": 20}),
]
STACKED += [
    ("histogram", "moe_glu", {"symbols": 7, "batch": 3}),
    ("add7", "moe", {"batch": 7, "depth": 2, "norm": "rms"}),
    ("add7", "dense", {"dropout": 0.3, "depth": 2}),
    ("modular_addition", "moe_glu", {"dropout": 0.1, "dropout_at": "hidden"}),
]


@pytest.mark.parametrize(("task", "name", "more"), STACKED, ids=["-".join((t, n, *m)) for t, n, m in STACKED])
def test_a_model_does_not_depend_on_its_neighbours(task, name, more):
    """The same bits alone, in a pair or among four, also where odd sizes leave vector registers half full."""
    specs = {seed: arm(name, "smoke", task, seed, steps=25, **more) for seed in (1, 2, 3, 4)}
    whole = dict(zip(specs, trained(list(specs.values())), strict=True))
    assert same(trained([specs[3]])[0], whole[3])
    for model, seed in zip(trained([specs[4], specs[1]]), (4, 1), strict=True):
        assert same(model, whole[seed])


def test_one_that_diverges_leaves_its_neighbours_alone():
    specs = [tiny("moe", "add7", seed) for seed in (1, 2)]
    models = Fleet(specs)
    with torch.no_grad():
        models.parameters["embed"][1] = math.nan
    for tokens, targets in batches(specs, CPU):
        models.step(tokens, targets)
    assert torch.isnan(models.flat[1, :10]).any()
    assert same(models.snapshot(0), trained([specs[0]])[0])


@pytest.mark.parametrize("task", TASKS)
def test_runs_and_measures_are_the_same_bits_twice_and_in_any_stack(task):
    specs = [arm("moe_switch", "smoke", task, seed, steps=20, evaluate_every=10) for seed in (1, 2, 3)]
    first, again = train(specs), train(specs)
    apart = [run for cut in (specs[:1], specs[1:]) for run in train(cut)]
    for other in (again, apart):
        for one, two in zip(first, other, strict=True):
            assert one.curve == two.curve
            assert one.moments.keys() == two.moments.keys()
            assert all(same(one.moments[m].parameters, two.moments[m].parameters) for m in one.moments)
    assert measure(first) == measure(again) == [row for run in apart for row in measure([run])]


# --- Data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_the_seeds_alone(task):
    """Not the arm's, nor the neighbours'; and steps see new ones unless the batch is the whole pool."""
    specs = [arm("dense", "smoke", task, seed) for seed in (1, 2)]
    both = list(islice(batches(specs, CPU), 3))
    alone = list(islice(batches([arm("moe", "smoke", task, 2)], CPU), 3))
    for (tokens, targets), (own, answers) in zip(both, alone, strict=True):
        assert torch.equal(tokens[1], own[0])
        assert torch.equal(targets[1], answers[0])
    assert torch.equal(both[0][0][0], both[1][0][0]) == (task == "modular_addition")


def test_the_histogram_pool_is_drawn_anew_when_it_is_time():
    spec = tiny("dense", "histogram", batch=0, pool=20, redraw_every=3, steps=7)
    seen = [tokens for tokens, _ in batches([spec], CPU)]
    changed = [not torch.equal(one, two) for one, two in pairwise(seen)]
    assert changed == [False, False, True, False, False, True]


def test_long_runs_go_on_drawing():
    spec = tiny("dense", "add7", steps=600)
    tokens = torch.stack([t[0] for t, _ in batches([spec], CPU)])
    assert len(tokens) == 600
    counts = tokens[:, :, 0].flatten().bincount(minlength=10)[:10]
    assert int(counts.min()) > 180, "all ten digits, evenly"


# --- Moments --------------------------------------------------------------------------------------------------------


def scripted(monkeypatch, scores: list[float], **more):
    """A run whose looks give these scores."""
    steps = 10 * len(scores)
    spec = tiny("dense", "modular_addition", steps=steps, evaluate_every=10, **more)
    told = iter(scores)

    def look(*_):
        score = torch.tensor([next(told)], dtype=torch.float64)
        return {
            "accuracy": score,
            "no_ffn_accuracy": score,
            "no_attention_accuracy": score,
            "test_accuracy": score,
        }, score

    monkeypatch.setattr(fleet, "look", look)
    (run,) = train([spec])
    return {name: moment.step for name, moment in run.moments.items()}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.2, 0.9, 0.9, 0.5], {"first_best": 20, "final": 40}),
        ([0.5, 0.5, 0.5], {"first_best": 10, "final": 30}),
        ([0.2, 0.99, 0.991, 0.4, 1.0, 1.0], {"first_best": 50, "grokked": 30, "final": 60}),
        ([1.0, 0.0], {"first_best": 10, "grokked": 10, "final": 20}),
    ],
)
def test_first_best_is_the_first_to_reach_the_maximum_and_grokked_the_first_above_99(
    monkeypatch, scores, expected
):
    """0.99 itself is not above."""
    assert scripted(monkeypatch, scores) == expected


def test_moments_hold_the_parameters_of_their_step():
    spec = tiny("dense", "add7", steps=40, evaluate_every=10)
    (run,) = train([spec])
    best = run.moments["first_best"]
    shorter = replace(spec, steps=best.step)
    assert same(trained([shorter])[0], best.parameters)
    assert same(trained([spec])[0], run.moments["final"].parameters)
    assert not any(t.requires_grad for m in run.moments.values() for t in m.parameters.values())


def test_grokking_is_judged_on_held_out_pairs_only():
    """A model that knows the trained pairs by heart has not grokked."""
    spec = tiny(
        "dense", "modular_addition", modulus=7, d_model=32, steps=300, evaluate_every=50, weight_decay=0.0
    )
    (run,) = train([spec])
    pairs = spec.task_object.evaluation(spec.seed, 0)
    parameters = {n: t[None] for n, t in run.moments["final"].parameters.items()}
    right = correct(spec.architecture, parameters, stacked([pairs]))[0, :, 0]
    held_out, known = right[pairs.held_out].double().mean(), right[~pairs.held_out].double().mean()
    assert run.curve["test_accuracy"][-1] == pytest.approx(float(held_out), abs=1e-12)
    assert float(known) > 0.7 > float(held_out)
    assert "grokked" not in run.moments


def test_the_last_step_is_looked_at_even_off_the_beat():
    (run,) = train([tiny("dense", "add7", steps=25, evaluate_every=10)])
    assert run.curve["step"] == [10, 20, 25]
    assert run.moments["final"].step == 25


def test_add_7_has_no_test_accuracy_and_the_others_do():
    for task in TASKS:
        (run,) = train([tiny("dense", task, steps=5, evaluate_every=5)])
        assert (run.curve["test_accuracy"] == [None]) == (task == "add7")


@pytest.mark.parametrize("task", TASKS)
def test_divergence_is_recorded_not_hidden(task):
    """A loss that blew up stands in the curve as what it is, and the run still has its moments and measures."""
    spec = tiny("moe_switch", task, learning_rate=1e6, clip=0.0, steps=60, evaluate_every=10)
    (run,) = train([spec])
    losses = run.curve["loss"]
    assert len(losses) == 6
    assert all(not math.isfinite(loss) or loss > 1e3 for loss in losses)
    assert {"first_best", "final"} <= run.moments.keys()
    (rows,) = measure([run])
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


# --- The spec -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"steps": 0}, "at least one step"),
        ({"evaluate_every": 0}, "at least one step"),
        ({"batch": -1}, "not negative"),
        ({"modulus": 5}, "the task add7 has no setting 'modulus'"),
        ({"decay": 61}, "over 0 to all 60 steps, not 61"),
        ({"warm_up": 61}, "rise over 0 to all 60 steps, not 61"),
        ({"no_such": 1}, "no setting called 'no_such'"),
        ({"dropout": 1.0}, "from 0 to below 1, not 1.0"),
        ({"heads": 7}, "7 heads do not divide a model width of 32"),
    ],
)
def test_a_run_that_cannot_be_is_refused_with_the_reason(more, reason):
    with pytest.raises(UserError, match=reason):
        arm("dense", "smoke", "add7", 1, **more)


@pytest.mark.usefixtures("untyped")
def test_an_unknown_arm_profile_or_task_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="no arm is called 'mlp'; there are dense, narrow"):
        arm("mlp", "smoke", "add7", 1)
    with pytest.raises(UserError, match="no profile is called 'huge'; there are smoke, laptop, paper"):
        settings("huge", "add7")
    with pytest.raises(UserError, match="no task is called 'sorting'"):
        settings("smoke", "sorting")
    with pytest.raises(UserError, match="no place of dropout is called 'input'; there are outputs, hidden"):
        arm("dense", "smoke", "add7", 1, dropout_at="input")


def test_experts_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="5 experts do not divide a width of 64"):
        arm("moe", "smoke", "add7", 1, experts=5)
    with pytest.raises(UserError, match="positive"):
        arm("moe", "smoke", "add7", 1, experts=0)


@pytest.mark.parametrize("name", [name for name in ARMS if "top2" not in name and name not in TREES])
def test_one_expert_is_the_dense_layer(name):
    assert arm(name, "smoke", "add7", 1, experts=1).router == "none"


def test_a_hash_router_has_no_balance_loss():
    with pytest.raises(UserError, match="balance loss needs a router that scores"):
        arm("moe_hash", "smoke", "add7", 1, balance_weight=0.01)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ({"decay": 4}, [1.0] * 7 + [0.75, 0.5, 0.25]),
        ({"warm_up": 4}, [0.25, 0.5, 0.75] + [1.0] * 7),
        ({"warm_up": 4, "decay": 8}, [0.25, 0.5, 0.75, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
    ],
)
def test_the_learning_rate_rises_over_the_first_steps_and_falls_over_the_last(shape, wanted):
    models = Fleet([tiny("dense", "add7", steps=10, learning_rate=1.0, **shape)])
    rates = []
    for _ in range(10):
        models.set_learning_rate()
        rates.append(models.optimiser.param_groups[0]["lr"])
        models.steps_done += 1
    assert rates == wanted
