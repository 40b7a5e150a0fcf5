"""The fleet's forward pass against the plain reference; its trace, its edits, its routers and its start."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError
from scipy.stats import kstest
from sklearn.metrics import normalized_mutual_info_score

import reference
from sparsity_moves.errors import UserError
from sparsity_moves.model import Architecture, FeedForward, components, count, forward, stack
from sparsity_moves.studies import ARMS, arm
from sparsity_moves.tasks import Addition, Histogram, ModularAddition, generator

TASKS = {"add7": Addition(2), "modular_addition": ModularAddition(7), "histogram": Histogram(8, 5)}
SEEDS = (1, 2)


def small(name: str, task: str = "add7", **more) -> Architecture:
    """An arm's FFN in a model small enough for the loops of the reference."""
    settings = {} if name == "glu_bilinear" else {"activation": "silu" if task == "add7" else "gelu"}
    ffn = replace(arm(name, "paper", "add7", 42, width=24).architecture.ffn, **settings)
    ffn = replace(ffn, **{k: more.pop(k) for k in list(more) if k in FeedForward.__dataclass_fields__})
    return Architecture(TASKS[task], **{"d_model": 12, "heads": 2, "ffn": ffn, **more})


CASES = {f"{task}-{name}": small(name, task) for task in TASKS for name in ARMS}
CASES |= {
    f"{task}-{name}{label}": small(name, task, **more)
    for task in TASKS
    for label, more in {
        "_norm": {"norm": "rms"},
        "_two_layers": {"depth": 2},
        "_norm_two_layers": {"norm": "rms", "depth": 2},
    }.items()
    for name in ("dense", "moe", "moe_glu", "moe_switch", "moe_hash_context")
}
CASES |= {
    f"add7-{name}_{phi}": small(name, activation=phi)
    for name in ("dense", "moe_glu")
    for phi in reference.PHI
}
CASES |= {
    "add7-moe_switch_top3": small("moe_switch", top_k=3),
    "add7-moe_every_expert": small("moe", top_k=4),
    "add7-trees_of_two_layers": small("tree", depth=2, tree_depth=2, width=23, always_on=2),
    "add7-trees_with_their_own_sums": small("tree", tree_depth=2, width=17, always_on=3, nonlinearity="tree"),
    "add7-trees_and_units_always_on": small("tree", tree_depth=1, width=11, always_on=5, nonlinearity="sum"),
    "add7-moe_twelve_experts": small("moe", experts=12),
    "add7-one_head": small("moe", heads=1),
    "add7-four_digits": replace(small("moe"), task=Addition(4, 9)),
}
every_case = pytest.mark.parametrize("architecture", list(CASES.values()), ids=list(CASES))
few = {
    name: CASES[name]
    for name in CASES
    if name.endswith(("dense", "moe_switch", "moe_glu_norm", "moe_two_layers"))
}
few_cases = pytest.mark.parametrize("architecture", list(few.values()), ids=list(few))


def fleet(architecture, dtype=torch.float64):
    models = [architecture.initialise(seed) for seed in SEEDS]
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in stack(models).items()}


def one(parameters, model):
    return {name: tensor[model] for name, tensor in parameters.items()}


def inputs(architecture, size=2, draw=0):
    """Other sequences and answers for each model."""
    every = architecture.task.evaluation(draw, 50)
    pick = torch.randint(len(every), (len(SEEDS), size), generator=generator(draw, "inputs"))
    return every.tokens[pick], every.targets[pick]


def deviation(ours, theirs) -> float:
    return float((ours - theirs).detach().abs().max())


# --- The same numbers as the reference -----------------------------------------------------------------------------


@every_case
def test_logits_balance_and_gradients_are_the_references(architecture):
    """In float64 to 1e-10 and in float32 to rounding. The loss is the task's plus, weighed alike, the balance's."""
    tokens, targets = inputs(architecture)
    p = {n: t.requires_grad_(t.is_floating_point()) for n, t in fleet(architecture).items()}
    positions = tuple(range(architecture.task.length)) if architecture.ffn.scores else ()
    trace = forward(architecture, p, tokens, balance_positions=positions)
    entropy = torch.nn.functional.cross_entropy(
        trace.logits.flatten(0, 2), targets.flatten(), reduction="none"
    )
    losses = entropy.view(targets.shape).mean((1, 2)) + trace.balance
    trained = [n for n in p if p[n].is_floating_point()]
    gradients = torch.autograd.grad(losses.sum(), [p[n] for n in trained], allow_unused=True)

    single = forward(architecture, fleet(architecture, torch.float32), tokens).logits

    for m in range(len(SEEDS)):
        own = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in one(p, m).items()}
        answer = reference.forward(architecture, own, tokens[m])
        balance = answer.balance(positions)
        loss = reference.cross_entropy(architecture, answer.logits, targets[m]) + balance
        logits = answer.logits[:, list(architecture.task.read_out)]
        assert deviation(trace.logits[m], logits) < 1e-10
        assert deviation(single[m], logits) < 4e-6 * float(logits.detach().abs().max())
        assert deviation(trace.balance[m], balance) < 1e-10
        assert deviation(losses[m], loss) < 1e-10
        theirs = torch.autograd.grad(loss, [own[n] for n in trained], allow_unused=True)
        for name, mine, other in zip(trained, gradients, theirs, strict=True):
            if mine is None or other is None:
                assert mine is None, f"only the reference has no gradient for {name}"
                assert other is None, f"only the fleet has no gradient for {name}"
            else:
                assert deviation(mine[m], other) < 1e-10, name


@few_cases
def test_any_positions_can_be_asked_in_any_order(architecture):
    tokens, _ = inputs(architecture)
    p = fleet(architecture)
    for positions in [tuple(range(architecture.task.length)), (2, 0), (1,)]:
        trace = forward(architecture, p, tokens, positions=positions)
        for m in range(len(SEEDS)):
            answer = reference.forward(architecture, one(p, m), tokens[m])
            assert deviation(trace.logits[m], answer.logits[:, list(positions)]) < 1e-10
            last = trace.layers[-1]
            name = f"{architecture.depth - 1}."
            at = list(positions)
            assert deviation(trace.embedding[m], answer.parts["embedding"][:, at]) < 1e-12
            assert deviation(last.pattern[m], answer.parts[name + "pattern"][:, :, at]) < 1e-12
            for part in ("heads", "attention", "ffn"):
                assert deviation(getattr(last, part)[m], answer.parts[name + part][:, at]) < 1e-10, part
            if architecture.ffn.router == "none":
                assert deviation(last.hidden[m], answer.parts[name + "hidden"][:, at]) < 1e-10
            else:
                assert deviation(last.routing.gates[m], answer.parts[name + "gates"][:, at]) < 1e-12


@few_cases
@pytest.mark.parametrize("where", ["read_out", "all", "first"])
def test_the_balance_loss_is_over_the_positions_asked_for_and_changes_no_logit(architecture, where):
    task = architecture.task
    positions = {"read_out": task.read_out, "all": tuple(range(task.length)), "first": (0,)}[where]
    tokens, _ = inputs(architecture)
    p = fleet(architecture)
    trace = forward(architecture, p, tokens, balance_positions=positions)
    assert deviation(trace.logits, forward(architecture, p, tokens).logits) < 1e-12
    for m in range(len(SEEDS)):
        expected = reference.forward(architecture, one(p, m), tokens[m]).balance(positions)
        assert deviation(trace.balance[m], expected) < 1e-12


# --- The trace ------------------------------------------------------------------------------------------------------


@every_case
def test_the_traces_parts_sum_to_the_residual_stream(architecture):
    tokens, _ = inputs(architecture)
    everywhere = tuple(range(architecture.task.length))
    trace = forward(architecture, fleet(architecture), tokens, positions=everywhere)
    parts = sum(layer.attention + layer.ffn for layer in trace.layers)
    assert deviation(trace.embedding + parts, trace.residual) < 1e-12
    for layer in trace.layers:
        assert deviation(layer.pattern.sum(-1), torch.ones(())) < 1e-12, "attention is a mean"
        if architecture.task.causal:
            assert float(layer.pattern.triu(1).abs().max()) == 0, "nobody looks ahead"
        if layer.routing is not None:
            assert torch.equal(
                layer.routing.chosen.sum(-1),
                torch.full_like(layer.routing.chosen[..., 0], architecture.ffn.open_blocks),
            )
            assert torch.equal(layer.routing.gates > 0, layer.routing.chosen > 0)


@few_cases
def test_the_table_of_the_first_layer_is_the_general_path(architecture):
    """An edit that changes nothing forces the general path."""
    tokens, _ = inputs(architecture, size=5)
    p = {n: t.requires_grad_(t.is_floating_point()) for n, t in fleet(architecture).items()}
    trained = [t for t in p.values() if t.requires_grad]
    found = []
    for edits in ({}, {"embedding": lambda x: x}, {"0.pattern": lambda x: x}):
        trace = forward(architecture, p, tokens, edits=edits)
        gradients = torch.autograd.grad(trace.logits.square().sum(), trained, allow_unused=True)
        found.append([trace.logits, trace.layers[0].pattern, trace.layers[0].heads, *gradients])
    for general in found[1:]:
        for table, other in zip(found[0], general, strict=True):
            assert (table is None) == (other is None)
            assert table is None or deviation(table, other) < 1e-10


# --- Edits ----------------------------------------------------------------------------------------------------------


EDITED = {
    name: CASES[name]
    for name in (
        "add7-dense",
        "add7-moe_switch",
        "modular_addition-moe_glu_norm",
        "histogram-moe",
        "add7-moe_two_layers",
        "histogram-dense_norm_two_layers",
        "add7-moe_hash_context_two_layers",
    )
}


def every_expert(component):
    """Where hidden units of other inputs are put in, experts that those closed may be open: have the reference
    compute the closed ones, too."""
    return {component.replace("hidden", "gates"): lambda x: x} if component.endswith("hidden") else {}


PARTS = [(name, part) for name, architecture in EDITED.items() for part in components(architecture)]


@pytest.mark.parametrize("how", ["zero", "mean"])
@pytest.mark.parametrize(("case", "component"), PARTS, ids=[f"{c}-{p}" for c, p in PARTS])
def test_zeroing_or_averaging_a_component_is_the_references(case, component, how):
    architecture = EDITED[case]
    tokens, _ = inputs(architecture)
    p = fleet(architecture)
    ours = {"zero": torch.zeros_like, "mean": lambda x: x.mean(1, keepdim=True).expand_as(x)}
    theirs = ours | {"mean": lambda x: x.mean(0, keepdim=True).expand_as(x)}
    logits = forward(architecture, p, tokens, edits={component: ours[how]}).logits
    plain = forward(architecture, p, tokens).logits
    at = list(architecture.task.read_out)
    for m in range(len(SEEDS)):
        edits = {component: theirs[how]} | every_expert(component)
        expected = reference.forward(architecture, one(p, m), tokens[m], edits).logits[:, at]
        assert deviation(logits[m], expected) < 1e-10
    if how == "zero":
        assert deviation(logits, plain) > 1e-6, "an edit that changes nothing was not made"


@pytest.mark.parametrize(("case", "component"), PARTS, ids=[f"{c}-{p}" for c, p in PARTS])
def test_patching_a_component_from_other_inputs_is_the_references(case, component):
    architecture = EDITED[case]
    (tokens, _), (others, _) = inputs(architecture), inputs(architecture, draw=1)
    p = fleet(architecture)
    seen = {}
    forward(architecture, p, others, edits={component: lambda x: seen.setdefault("value", x)})
    logits = forward(architecture, p, tokens, edits={component: lambda x: seen["value"]}).logits
    at = list(architecture.task.read_out)
    for m in range(len(SEEDS)):
        other = reference.forward(architecture, one(p, m), others[m], every_expert(component)).parts[
            component
        ]
        expected = reference.forward(
            architecture, one(p, m), tokens[m], {component: lambda x, other=other: other}
        )
        assert deviation(logits[m], expected.logits[:, at]) < 1e-10


@pytest.mark.parametrize("name", ["1.attention", "attention", "0.mlp", "", "0.attention.out"])
def test_an_edit_of_a_component_that_is_not_there_is_refused(name):
    architecture = small("dense")
    with pytest.raises(UserError, match="no component is called") as refusal:
        forward(architecture, fleet(architecture), inputs(architecture)[0], edits={name: torch.zeros_like})
    assert "0.attention, " in str(refusal.value), "it says what there is"


def test_a_model_without_experts_has_no_gates_to_edit():
    """An edit that no code would ever call must not be taken in silence."""
    architecture = small("dense")
    assert "0.gates" not in components(architecture)
    with pytest.raises(UserError, match=r"no component is called 0\.gates"):
        forward(
            architecture, fleet(architecture), inputs(architecture)[0], edits={"0.gates": torch.zeros_like}
        )


def test_shapes_are_checked_while_the_tests_run():
    architecture = small("dense")
    with pytest.raises(TypeCheckError):
        forward(architecture, fleet(architecture), torch.zeros(3, dtype=torch.int64))


# --- Routing --------------------------------------------------------------------------------------------------------


def router_gradient(name: str, task: str, balance: float = 0.0, **more) -> torch.Tensor:
    architecture = small(name, task, **more)
    tokens, targets = inputs(architecture, size=40)
    p = fleet(architecture, torch.float32)
    p = {n: t.requires_grad_(t.is_floating_point()) for n, t in p.items()}
    positions = architecture.task.read_out if balance else ()
    trace = forward(architecture, p, tokens, balance_positions=positions)
    loss = torch.nn.functional.cross_entropy(trace.logits.flatten(0, 2), targets.flatten())
    return torch.autograd.grad(
        loss + balance * trace.balance.sum(), p["0.ffn.router"], allow_unused=True, materialize_grads=True
    )[0]


@pytest.mark.parametrize("task", list(TASKS))
class TestWhatTrainsTheRouter:
    """The paper's top-1 router, renormalised, hears nothing of the task."""

    @pytest.mark.parametrize("name", ["moe", "moe_glu", "moe_active"])
    def test_a_renormalised_top_1_router_gets_exactly_no_gradient_from_the_task(self, task, name):
        assert torch.count_nonzero(router_gradient(name, task)) == 0

    @pytest.mark.parametrize("norm", ["none", "rms"])
    def test_the_balance_loss_alone_trains_it(self, task, norm):
        assert torch.count_nonzero(router_gradient("moe", task, balance=0.01, norm=norm)) > 0

    def test_the_switch_router_gets_some(self, task):
        assert float(router_gradient("moe_switch", task).abs().max()) > 1e-5

    def test_and_so_does_a_renormalised_top_2_router(self, task):
        assert float(router_gradient("moe_top2", task).abs().max()) > 1e-5


def test_a_frozen_router_starts_as_its_learned_twin_and_is_not_trained():
    for learned, frozen in [
        ("moe", "moe_frozen"),
        ("moe_glu", "moe_glu_frozen"),
        ("moe_switch", "moe_switch_frozen"),
    ]:
        one, other = (arm(name, "paper", "add7", 42).architecture for name in (learned, frozen))
        here, there = one.initialise(42), other.initialise(42)
        assert all(torch.equal(here[n], there[n]) for n in here)
        assert here.keys() == there.keys()
        assert set(one.trained()) - set(other.trained()) == {"0.ffn.router"}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_renormalised_top_1_gate_is_one_whatever_the_scores(scale):
    """Even where every other probability underflows; a Switch gate is the probability itself."""
    for name in ("moe", "moe_switch"):
        architecture = small(name)
        p = fleet(architecture, torch.float32)
        p["0.ffn.router"] = p["0.ffn.router"] * scale
        routing = forward(architecture, p, inputs(architecture)[0]).layers[0].routing
        opened = routing.gates[routing.chosen > 0]
        expected = torch.ones_like(opened) if name == "moe" else routing.probabilities[routing.chosen > 0]
        assert torch.equal(opened, expected)


def test_two_experts_of_equal_score_are_still_one_choice():
    architecture = small("moe")
    p = fleet(architecture, torch.float32)
    p["0.ffn.router"] = torch.zeros_like(p["0.ffn.router"])
    routing = forward(architecture, p, inputs(architecture)[0]).layers[0].routing
    assert torch.equal(routing.chosen.sum(-1), torch.ones_like(routing.chosen[..., 0]))


def test_the_balance_loss_is_one_when_even_and_the_number_of_experts_when_all_go_to_one():
    architecture = small("moe")
    p = fleet(architecture)
    tokens = inputs(architecture)[0]
    p["0.ffn.router"] = torch.zeros_like(p["0.ffn.router"])
    even = forward(architecture, p, tokens, balance_positions=(0, 1)).balance
    assert deviation(even, torch.ones_like(even)) < 1e-12
    p["embed"], p["position"] = torch.ones_like(p["embed"]), torch.zeros_like(p["position"])
    p["0.attention.out"] = torch.zeros_like(p["0.attention.out"])
    p["0.attention.out_bias"] = torch.zeros_like(p["0.attention.out_bias"])
    p["0.ffn.router"][:, :, 2] = 10
    one_expert = forward(architecture, p, tokens, balance_positions=(0, 1)).balance
    assert deviation(one_expert, torch.full_like(one_expert, 4)) < 1e-9


def experts_of(architecture, seed, sequences):
    p = stack([architecture.initialise(seed)])
    return forward(architecture, p, sequences.tokens[None]).layers[0].routing.gates[0].argmax(-1)


class TestHashRouting:
    """It never looks at the residual stream."""

    @pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))
    def test_by_token_is_a_function_of_the_token_and_as_even_as_can_be(self, task):
        architecture = replace(small("moe_hash"), task=task)
        sequences = task.evaluation(0, 500)
        positions = list(task.read_out)
        expert = experts_of(architecture, 5, sequences)
        of: dict[int, set[int]] = {}
        for symbol, chosen in zip(
            sequences.tokens[:, positions].flatten().tolist(), expert.flatten().tolist(), strict=True
        ):
            of.setdefault(symbol, set()).add(chosen)
        assert all(len(chosen) == 1 for chosen in of.values())
        load = architecture.initialise(5)["0.ffn.hash"].bincount(minlength=4)
        assert int(load.max() - load.min()) <= 1

    @pytest.mark.parametrize("name", ["moe_hash", "moe_hash_context"])
    def test_the_table_is_the_seeds_and_no_parameter(self, name):
        architecture = small(name)
        first, again, other = (architecture.initialise(seed)["0.ffn.hash"] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert "0.ffn.hash" not in architecture.trained()
        learned = replace(architecture, ffn=replace(architecture.ffn, router="learned"))
        assert count(architecture).parameters == count(learned).parameters - 12 * 4

    @pytest.mark.parametrize(
        ("task", "bound"),
        [(Addition(), 0.05), (ModularAddition(113), 0.005), (Histogram(), 0.005)],
        ids=list(TASKS),
    )
    def test_by_context_tells_nothing_of_the_operation(self, task, bound):
        """Nor does the expert's load: every expert gets its share."""
        architecture = replace(small("moe_hash_context"), task=task)
        sequences = task.evaluation(0, 3000)
        scored = list(task.scored)
        found = []
        for seed in SEEDS:
            expert = experts_of(architecture, seed, sequences)[:, scored].flatten()
            found.append(normalized_mutual_info_score(sequences.operations[:, scored].flatten(), expert))
            share = expert.bincount(minlength=4) / len(expert)
            assert float((share - 0.25).abs().max()) < 0.05
        assert sum(found) / len(found) < bound

    def test_by_context_uses_only_what_a_causal_position_can_see(self):
        task = Addition()
        architecture = replace(small("moe_hash_context"), task=task)
        tokens = task.everything().tokens[:50]
        p = stack([architecture.initialise(0)])
        later = tokens.clone()
        later[:, -1] = (later[:, -1] + 1) % 10
        before, after = (
            forward(architecture, p, t[None], positions=tuple(range(8))).layers[0].routing.gates[0]
            for t in (tokens, later)
        )
        assert torch.equal(before[:, :-1], after[:, :-1])
        assert not torch.equal(before[:, -1], after[:, -1])


# --- The start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "moe", "moe_glu", "moe_active", "glu"])
@pytest.mark.parametrize("task", list(TASKS))
def test_models_start_as_pytorchs_layers_do(task, name):
    """N(0, 1) embeddings; U(±1/√fan_in) linear layers, with an expert's own fan-in where experts read their units."""
    architecture = arm(name, "paper", task, 42).architecture
    d, hidden = architecture.d_model, architecture.ffn.expert_width
    for part, values in architecture.initialise(42).items():
        kind = part.rsplit(".", 1)[-1]
        values = values.flatten()[:20_000].double().numpy()
        if kind in ("embed", "position"):
            assert kstest(values, "norm").pvalue > 1e-4, part
            continue
        bound = 1 / math.sqrt(hidden if kind in ("w_out", "b_out") else d)
        assert abs(values).max() <= bound, part
        assert kstest(values, "uniform", (-bound, 2 * bound)).pvalue > 1e-4, part


def test_pytorchs_own_linear_layer_has_these_bounds():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 4096)
    for tensor in (layer.weight, layer.bias):
        assert 0.99 / 8 < float(tensor.detach().abs().max()) <= 1 / 8


def test_arms_of_one_seed_share_all_but_their_ffn():
    start = {name: arm(name, "paper", "add7", 7).architecture.initialise(7) for name in ARMS}
    for name, parameters in start.items():
        shared = [n for n in parameters if ".ffn." not in n]
        assert len(shared) == 5
        assert all(torch.equal(parameters[n], start["dense"][n]) for n in shared), name
    assert not torch.equal(
        start["dense"]["embed"], arm("dense", "paper", "add7", 8).architecture.initialise(8)["embed"]
    )


def test_no_two_parameters_start_from_the_same_numbers():
    parameters = Architecture(Addition(), depth=3, ffn=FeedForward(256, 4, 1, "learned")).initialise(0)
    starts = [tuple((t / t.std()).flatten()[:4].tolist()) for t in parameters.values()]
    assert len({round(s[0], 3) for s in starts}) == len(starts)


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ffn", "reason"),
    [
        ({"width": 0}, "at least one hidden unit"),
        ({"width": 10, "experts": 4, "router": "learned"}, "4 experts do not divide a width of 10"),
        (
            {"experts": 4, "top_k": 5, "router": "learned"},
            r"top-k is from 1 to the number of experts \(4\), not 5",
        ),
        ({"experts": 4, "top_k": 0, "router": "learned"}, "not 0"),
        ({"experts": 4}, "a router needs experts to choose"),
        ({"router": "learned"}, "a router needs experts to choose"),
        ({"experts": 4, "top_k": 2, "router": "hash"}, "top-k must be 1"),
        ({"experts": 4, "router": "magic"}, "no router is called 'magic'; there are none, learned"),
        ({"activation": "tanh"}, "no activation is called 'tanh'"),
        ({"gate": "open"}, "no gate is called 'open'"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_an_ffn_that_cannot_be_is_refused_with_the_reason(ffn, reason):
    with pytest.raises(UserError, match=reason):
        FeedForward(**ffn)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"depth": 0}, "at least one layer, not 0"),
        ({"heads": 5}, "5 heads do not divide"),
        ({"heads": 0}, "0 heads"),
        ({"norm": "layer"}, "no norm is called 'layer'; there are none, rms"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_a_transformer_that_cannot_be_is_refused_with_the_reason(settings, reason):
    with pytest.raises(UserError, match=reason):
        Architecture(Addition(), **settings)
