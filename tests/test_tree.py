"""Trees: tokens walk known paths, gradients reach visited nodes alone, pruning changes nothing that was seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparsity_moves.errors import UserError
from sparsity_moves.measures import tree as measures
from sparsity_moves.measures.routing import router_nmi
from sparsity_moves.model import Architecture, FeedForward, count, forward, stack
from sparsity_moves.model.feedforward import combine, hidden_units
from sparsity_moves.model.tree import by_path, leaves, living, prune, visits
from sparsity_moves.studies import arm
from sparsity_moves.tasks import Addition, generator
from sparsity_moves.training import Fleet, train
from sparsity_moves.training.data import batches, evaluation

ONE_TREE = FeedForward(width=7, router="tree", tree_depth=2, activation="relu")


def path(responses: list[float], ffn: FeedForward = ONE_TREE) -> list[int]:
    """The open units of one token, from its responses."""
    gates = by_path(ffn, torch.tensor(responses, dtype=torch.float).view(1, 1, 1, -1)).gates
    return gates.flatten().nonzero().flatten().tolist()


# --- Paths ----------------------------------------------------------------------------------------------------------


def test_a_token_walks_from_the_root_to_a_leaf():
    """Node n's children are 2n + 1 and 2n + 2: right where the response is above zero."""
    assert path([-1, -1, 9, 9, 9, 9, 9]) == [0, 1, 3]
    assert path([-1, 1, 9, 9, 9, 9, 9]) == [0, 1, 4]
    assert path([1, 9, -1, 9, 9, 9, 9]) == [0, 2, 5]
    assert path([1, 9, 1, 9, 9, 9, 9]) == [0, 2, 6]


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_goes_left(zero):
    assert path([zero] * 7) == [0, 1, 3]


def test_trees_are_walked_apart_and_some_units_are_always_on():
    ffn = FeedForward(width=2 + 2 * 3, router="tree", tree_depth=1, always_on=2)
    assert path([-9, -9, 1, 0, 0, -1, 0, 0], ffn) == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "none"])
def test_every_activation_keeps_the_sign_that_the_path_is_read_from(activation):
    ffn = FeedForward(width=3, router="tree", tree_depth=1, activation=activation)
    response = torch.cat(
        [torch.tensor([0.0, -0.0]), torch.logspace(-30, 4, 200), -torch.logspace(-30, 4, 200)]
    )
    p = {"w_in": torch.ones(1, 1, 3), "b_in": torch.zeros(1, 3)}
    hidden = hidden_units(ffn, p, "", response.view(1, -1, 1))
    assert torch.equal(hidden[0, :, 0] > 0, response > 0)


def test_the_hard_choice_passes_no_gradient_and_unvisited_nodes_get_none():
    ffn = FeedForward(width=15, router="tree", tree_depth=3, activation="silu")
    source = generator(0, "tree")
    p = {"w_in": torch.randn(1, 6, 15, generator=source), "b_in": torch.randn(1, 15, generator=source)}
    p |= {"w_out": torch.randn(1, 15, 6, generator=source)}
    p = {name: tensor.double().requires_grad_() for name, tensor in p.items()}
    x = torch.randn(1, 1, 6, generator=source).double().requires_grad_()
    hidden = hidden_units(ffn, p, "", x)
    routing = by_path(ffn, hidden[:, :, None])
    assert not routing.gates.requires_grad
    out = combine(ffn, p, "", hidden, routing.gates[:, :, 0]).sum()
    d_w, d_b, d_out, d_x = torch.autograd.grad(out, [p["w_in"], p["b_in"], p["w_out"], x])
    visited = routing.chosen.flatten() > 0
    assert int(visited.sum()) == 4
    for gradient in (d_w[0].abs().sum(0), d_b[0].abs(), d_out[0].abs().sum(1)):
        assert torch.equal(gradient > 0, visited)
    # By hand: the nodes on the path are a small dense layer.
    own = visited.nonzero().flatten()
    y = torch.nn.functional.silu(x[0] @ p["w_in"][0][:, own] + p["b_in"][0][own]) @ p["w_out"][0][own]
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], d_x)


# --- Sizes ----------------------------------------------------------------------------------------------------------


def test_counts_of_a_forest():
    ffn = FeedForward(width=10 + 5 * 31, router="tree", tree_depth=4, always_on=10)
    assert (ffn.trees, ffn.nodes, ffn.open_blocks) == (5, 31, 10 + 25)
    sizes = count(Architecture(Addition(), d_model=64, ffn=ffn))
    assert sizes.ffn_parameters == 165 * (2 * 64 + 1), (
        "two weights' rows and a bias a node; no bias at the output"
    )
    assert sizes.active_ffn_parameters == 35 * (2 * 64 + 1)
    assert sizes.ffn_flops_per_token == 4 * 64 * 35


@pytest.mark.parametrize(("task", "width"), [("add7", 256), ("modular_addition", 512), ("histogram", 512)])
def test_trees_of_depth_3_have_an_moes_size_in_total_and_active(task, width):
    tree, moe = (count(arm(name, "paper", task, 1).architecture) for name in ("tree", "moe"))
    assert arm("tree", "paper", task, 1).width == width // 15 * 15
    for part in ("ffn_parameters", "active_ffn_parameters"):
        assert 0.95 < getattr(tree, part) / getattr(moe, part) < 1.07


@pytest.mark.parametrize("depth", range(2, 9))
def test_matched_widths_at_every_depth(depth):
    """In total within one tree of the dense width; by open units within one path of one expert's."""
    total = arm("tree", "paper", "histogram", 1, tree_depth=depth).architecture.ffn
    active = arm("tree_active", "paper", "histogram", 1, tree_depth=depth).architecture.ffn
    assert 512 - total.nodes < total.width <= 512
    assert 128 - depth - 1 < active.open_blocks <= 128
    balanced = arm("tree_balanced", "paper", "histogram", 1, tree_depth=depth)
    assert balanced == replace(arm("tree", "paper", "histogram", 1, tree_depth=depth), nonlinearity="sum")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"width": 8, "router": "tree", "tree_depth": 2}, "is no whole number of trees of 7 nodes"),
        ({"width": 7, "router": "tree"}, "at least one level"),
        ({"width": 7, "router": "tree", "tree_depth": 2, "gated": True}, "neither experts nor a GLU"),
        ({"width": 7, "router": "tree", "tree_depth": 2, "always_on": 7}, "is no whole number of trees"),
        ({"width": 7, "tree_depth": 2}, "settings of trees"),
        ({"nonlinearity": "sum"}, "settings of trees"),
        (
            {"width": 7, "router": "tree", "tree_depth": 2, "nonlinearity": "leaf"},
            "no place of a nonlinearity",
        ),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_is_no_forest_is_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        FeedForward(**settings)


@pytest.mark.parametrize(("name", "depth"), [("dense", 3), ("tree", 0)])
def test_only_trees_have_a_depth(name, depth):
    with pytest.raises(UserError, match="arms of trees are tree, tree_balanced, tree_active"):
        arm(name, "smoke", "add7", 0, tree_depth=depth)


# --- Training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tree", "tree_balanced"])
def test_what_a_tree_becomes_does_not_depend_on_its_neighbours(name):
    ends = []
    for seeds in ((3,), (1, 2, 3)):
        specs = [arm(name, "smoke", "add7", seed) for seed in seeds]
        fleet = Fleet(specs)
        for _, batch in zip(range(5), batches(specs, fleet.device), strict=False):
            fleet.step(*batch)
        ends.append(fleet.flat[-1])
    assert torch.equal(*ends)


def test_trees_learn():
    (run,) = train([arm("tree", "smoke", "add7", 1, steps=300)])
    assert run.curve["accuracy"][-1] > 0.9
    assert run.curve["loss"][-1] < run.curve["loss"][0] / 3


# --- Pruning --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["node", "sum", "tree"])
def used(request):
    """Two models of two layers, what they are asked, and each layer's paths."""
    ffn = FeedForward(width=4 + 2 * 31, router="tree", tree_depth=4, always_on=4, nonlinearity=request.param)
    architecture = Architecture(Addition(2), d_model=16, heads=2, depth=2, ffn=ffn)
    p = stack([architecture.initialise(seed) for seed in (1, 2)])
    tokens = Addition(2).evaluation(0, 40).tokens[:40].expand(2, -1, -1)
    trace = forward(architecture, p, tokens)
    return architecture, p, tokens, trace


def test_pruning_what_nobody_visits_changes_no_bit_on_what_was_seen(used):
    architecture, p, tokens, trace = used
    counts = [visits(architecture.ffn, layer.routing.chosen) for layer in trace.layers]
    assert all((c == 0).any() for c in counts), "something is to be pruned"
    pruned = prune(architecture, p, counts)
    again = forward(architecture, pruned, tokens)
    assert torch.equal(again.logits, trace.logits)
    for layer in range(2):
        left = living(architecture.ffn, pruned, f"{layer}.ffn.")
        assert torch.equal(left, 4 + (counts[layer] > 0).sum((1, 2)))
        assert torch.equal((pruned[f"{layer}.ffn.w_out"].abs().sum(-1) > 0).sum(-1), left)
    assert living(architecture.ffn, p, "0.ffn.").tolist() == [66, 66]


def test_tokens_that_were_not_seen_are_sent_to_living_nodes_only(used):
    architecture, p, _, trace = used
    counts = [visits(architecture.ffn, layer.routing.chosen) for layer in trace.layers]
    pruned = prune(architecture, p, counts)
    others = Addition(2).evaluation(0, 100).tokens[40:].expand(2, -1, -1)
    layer = forward(architecture, pruned, others).layers[0]
    now = visits(architecture.ffn, layer.routing.chosen)
    assert not now[counts[0] == 0].any()
    assert bool((layer.routing.chosen.sum(-1) == architecture.ffn.open_blocks).all()), "no path ends early"
    free = forward(architecture, p, others).layers[0]
    assert visits(architecture.ffn, free.routing.chosen)[counts[0] == 0].any(), "else this shows nothing"


def test_a_threshold_prunes_more_and_does_change_the_function(used):
    architecture, p, tokens, trace = used
    counts = [visits(architecture.ffn, layer.routing.chosen) for layer in trace.layers]
    some, more = (prune(architecture, p, counts, threshold) for threshold in (0.0, 0.2))
    assert bool((living(architecture.ffn, more, "1.ffn.") < living(architecture.ffn, some, "1.ffn.")).all())
    assert not torch.equal(forward(architecture, more, tokens).logits, trace.logits)
    with pytest.raises(UserError, match="a share of the tokens"):
        prune(architecture, p, counts, 1.0)
    with pytest.raises(UserError, match=r"2 layer\(s\) want as many counts of visits, not 1"):
        prune(architecture, p, counts[:1])


def test_where_no_child_is_left_the_path_ends():
    ffn = ONE_TREE
    alive = torch.tensor([[[True, True, True, True, False, False, False]]])
    hidden = torch.tensor([[-1.0, 1, 0, 0, 0, 0, 0], [1.0, 0, 1, 0, 0, 0, 0]]).view(1, 2, 1, 7)
    chosen = by_path(ffn, hidden, alive).chosen
    assert [row.nonzero().flatten().tolist() for row in chosen[0, :, 0]] == [[0, 1, 3], [0, 2]]
    assert leaves(ffn, chosen)[0, :, 0, 0].tolist() == [0, -1]


# --- Measures -------------------------------------------------------------------------------------------------------


def walks(*ends: int) -> torch.Tensor:
    """Tokens that end in these leaves of one tree of depth 2, as chosen nodes (1, B, 1, 7)."""
    chosen = torch.zeros(1, len(ends), 1, 7)
    for token, leaf in enumerate(ends):
        for node in (0, 1 + leaf // 2, 3 + leaf):
            chosen[0, token, 0, node] = 1
    return chosen


def test_visits_and_leaves_are_counted():
    chosen = walks(0, 0, 1, 3)
    assert visits(ONE_TREE, chosen).tolist() == [[[4, 3, 1, 2, 1, 0, 1]]]
    assert leaves(ONE_TREE, chosen).flatten().tolist() == [0, 0, 1, 3]


@pytest.mark.parametrize(
    ("ends", "entropy", "balance", "dead"),
    [
        ((0, 1, 2, 3), 1.0, 1.0, 0.0),
        ((2, 2, 2), 0.0, 0.0, 4 / 7),
        ((0, 0, 3, 3), 0.5, 0.5, 2 / 7),
        ((0, 0, 0, 1), (2 - 0.75 * math.log2(3)) / 2, 0.25, 3 / 7),
    ],
)
def test_entropy_balance_and_dead_nodes(ends, entropy, balance, dead):
    found = measures.usage(ONE_TREE, walks(*ends))
    assert float(found["leaf_entropy"]) == pytest.approx(entropy)
    assert float(found["balance"]) == pytest.approx(balance)
    assert float(found["dead_nodes"]) == pytest.approx(dead)
    assert int(found["idle_units"]) == round(7 * dead)


def test_path_agreement_is_the_shared_part_of_the_path():
    before, after = (leaves(ONE_TREE, walks(*ends)) for ends in ((0, 1, 2, 3), (0, 0, 0, 3)))
    assert float(measures.path_agreement(ONE_TREE, before, after)) == pytest.approx((2 + 1 + 0 + 2) / 8)
    assert float(measures.path_agreement(ONE_TREE, after, after)) == 1


def test_usage_over_training_starts_with_even_trees_and_follows_every_layer():
    specs = [arm("tree", "smoke", "add7", seed, steps=40, depth=2) for seed in (1, 2)]
    rows = measures.over_training(specs, every=20)
    assert [(r["step"], r["layer"], r["seed"]) for r in rows] == [
        (step, layer, seed) for step in (0, 20, 40) for layer in (0, 1) for seed in (1, 2)
    ]
    assert all(r["path_agreement"] is None for r in rows[:4])
    assert all(0.3 < r["path_agreement"] < 1 for r in rows[4:])
    assert all(0 <= r[name] <= 1 for r in rows for name in ("leaf_entropy", "balance", "dead_nodes"))
    final = train([specs[0]])[0].moments["final"]
    trained = stack([final.parameters])
    chosen = measures.walked(specs[0].architecture, trained, evaluation(specs[:1], torch.device("cpu")))
    assert float(measures.usage(specs[0].architecture.ffn, chosen[1])["balance"]) == pytest.approx(
        rows[-2]["balance"]
    ), "the fleet that is looked at is trained as any other"


def test_the_routers_information_of_a_tree_is_its_leaves():
    """Where no unit reads anything all tokens end in one leaf of a tree, which tells nothing."""
    spec = arm("tree", "smoke", "add7", 0)
    architecture = spec.architecture
    p = stack([architecture.initialise(0)])
    p["0.ffn.w_in"] = torch.zeros_like(p["0.ffn.w_in"])
    sequences = evaluation([spec], torch.device("cpu"))
    assert router_nmi(architecture, p, sequences) == [0.0], "one leaf for all"
    p = stack([architecture.initialise(0)])
    (found,) = router_nmi(architecture, p, sequences)
    assert found is not None
    assert 0.01 < found < 1
