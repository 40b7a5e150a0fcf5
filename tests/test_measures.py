"""Measures on networks whose circuit is known, because it was put there by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sparsity_moves.measures import ablation, measure
from sparsity_moves.measures.ablation import component_ablation
from sparsity_moves.measures.attribution import attention_share, correct_logit_terms
from sparsity_moves.measures.routing import router_nmi
from sparsity_moves.model import Architecture, FeedForward, forward, stack
from sparsity_moves.studies import arm
from sparsity_moves.tasks import Addition, Histogram, Sequences, generator, stacked
from sparsity_moves.training import accuracy, correct, train

SYMBOLS = 5
SEED = 3
PLANTED = Architecture(
    Histogram(SYMBOLS, SYMBOLS), d_model=24, heads=1, ffn=FeedForward(24, activation="relu")
)
ARRANGED = torch.tensor([3, 0, 4, 1, 2])
"""The right answer to each symbol: a permutation, so that every answer is asked equally often."""


def empty(architecture: Architecture) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1, *shape) for name, shape in architecture.shapes().items()}


def orthogonal() -> dict[str, torch.Tensor]:
    """Room for one symbol (0–4), the position (5–9), a symbol read from elsewhere (10–14) and an answer (15–19)."""
    p = empty(PLANTED)
    p["embed"][0, :, :5] = torch.eye(5)
    p["position"][0, :, 5:10] = torch.eye(5)
    p["unembed"][0, 15:20] = torch.eye(5)
    return p


def answer_in_attention() -> dict[str, torch.Tensor]:
    """Every position looks at position 0 and writes that symbol's answer; the FFN does nothing."""
    p = orthogonal()
    p["0.attention.qkv"][0, 5:10, 0] = 1  # query: any position
    p["0.attention.qkv"][0, 5, 24] = 1000  # key: position 0
    p["0.attention.qkv"][0, :5, 48:53] = torch.eye(5)  # value: the symbol
    p["0.attention.out"][0, torch.arange(5), 15 + ARRANGED] = 1
    return p


def answer_in_ffn() -> dict[str, torch.Tensor]:
    """Every position writes its own symbol's answer through a hidden unit; attention does nothing."""
    p = orthogonal()
    p["0.ffn.w_in"][0, :5, :5] = torch.eye(5)
    p["0.ffn.w_out"][0, torch.arange(5), 15 + ARRANGED] = 1
    return p


def balanced() -> torch.Tensor:
    """50 sequences in which each symbol stands equally often at each position."""
    shift, stride = torch.arange(50)[:, None], torch.tensor([1, 2, 3, 4, 1])[torch.arange(50) // 10][:, None]
    return (shift + stride * torch.arange(5)) % 5


def asked(answers: torch.Tensor, tokens: torch.Tensor) -> Sequences:
    return Sequences(tokens, answers, answers)


def planted(where: str) -> tuple[dict[str, torch.Tensor], Sequences]:
    tokens = balanced()
    if where == "attention":
        return answer_in_attention(), asked(ARRANGED[tokens[:, :1]].expand(50, 5).contiguous(), tokens)
    return answer_in_ffn(), asked(ARRANGED[tokens], tokens)


def the_answer_is_in(component: str, where: str) -> None:
    """The claim of a component ablation: without `component` nothing is left, without the other nothing is lost."""
    parameters, sequences = planted(where)
    left = component_ablation(PLANTED, parameters, stacked([sequences]), [SEED])
    other = {"ffn": "attention", "attention": "ffn"}[component]
    for how in ("no", "mean"):
        assert left[f"{how}_{component}_accuracy"].item() == pytest.approx(0.2, abs=1e-12)
    for how in ("no", "mean", "resample"):
        assert left[f"{how}_{other}_accuracy"].item() == 1


class TestPlantedCircuits:
    @pytest.mark.parametrize("where", ["attention", "ffn"])
    def test_the_planted_network_answers_everything(self, where):
        parameters, sequences = planted(where)
        assert accuracy(correct(PLANTED, parameters, stacked([sequences]))).item() == 1

    @pytest.mark.parametrize("where", ["attention", "ffn"])
    def test_the_ablation_finds_where_the_answer_is(self, where):
        """Chance is a fifth exactly: every answer is asked for equally often."""
        the_answer_is_in(where, where)

    @pytest.mark.parametrize(("aimed", "where"), [("ffn", "attention"), ("attention", "ffn")])
    def test_aimed_at_the_wrong_component_the_claim_fails(self, aimed, where):
        with pytest.raises(AssertionError):
            the_answer_is_in(aimed, where)

    @pytest.mark.parametrize("where", ["attention", "ffn"])
    def test_an_ablation_wired_to_the_wrong_component_is_caught(self, where, monkeypatch):
        """A mutation of the measure itself."""
        other = {"ffn": "attention", "attention": "ffn"}
        real = ablation.replacement
        monkeypatch.setattr(ablation, "replacement", lambda component, *more: real(other[component], *more))
        with pytest.raises(AssertionError):
            the_answer_is_in(where, where)

    @pytest.mark.parametrize("where", ["attention", "ffn"])
    def test_resampling_leaves_what_the_other_input_happens_to_share(self, where):
        parameters, sequences = planted(where)
        order = torch.randperm(50, generator=generator(SEED, "resample"))
        shared = (sequences.targets == sequences.targets[order]).double().mean().item()
        left = component_ablation(PLANTED, parameters, stacked([sequences]), [SEED])
        assert left[f"resample_{where}_accuracy"].item() == pytest.approx(shared, abs=1e-12)
        assert 0.05 < shared < 0.5

    @pytest.mark.parametrize(("where", "share"), [("attention", 1.0), ("ffn", 0.0)])
    def test_logit_attribution_gives_the_whole_answer_to_its_component(self, where, share):
        parameters, sequences = planted(where)
        assert attention_share(PLANTED, parameters, stacked([sequences])) == [share]

    def test_two_models_of_a_fleet_are_told_apart(self):
        parameters, sequences = zip(planted("attention"), planted("ffn"), strict=True)
        both = {name: torch.cat([p[name] for p in parameters]) for name in parameters[0]}
        left = component_ablation(PLANTED, both, stacked(list(sequences)), [SEED, SEED])
        assert left["no_ffn_accuracy"].tolist() == pytest.approx([1.0, 0.2])
        assert left["no_attention_accuracy"].tolist() == pytest.approx([0.2, 1.0])
        assert attention_share(PLANTED, both, stacked(list(sequences))) == [1.0, 0.0]

    def test_a_mean_keeps_what_is_the_same_for_every_input(self):
        """Where the answer needs a constant that attention writes, zeroing breaks the model and the mean does not."""
        parameters, sequences = planted("ffn")
        parameters["0.attention.out_bias"][0, 20] = 1
        parameters["0.ffn.w_in"][0, 20, :5] = 1
        parameters["0.ffn.b_in"][0, :5] = -1  # a unit needs its symbol and attention's constant
        left = component_ablation(PLANTED, parameters, stacked([sequences]), [SEED])
        assert left["no_attention_accuracy"].item() == pytest.approx(0.2)
        assert left["mean_attention_accuracy"].item() == 1
        assert left["resample_attention_accuracy"].item() == 1


class TestOneDigitAddition:
    """A network for d + 7, read at two positions by two heads; its FFN is empty."""

    task = Addition(digits=1)
    architecture = Architecture(task, d_model=48, heads=2, ffn=FeedForward(4))

    def parameters(self):
        p = empty(self.architecture)
        p["embed"][0, :, :12] = torch.eye(12)
        p["position"][0, :, 12:16] = torch.eye(4)
        for head, position in ((0, 1), (1, 2)):  # which position each head answers at
            for asking in range(4):  # at others it looks at EOS, whose value is nothing
                p["0.attention.qkv"][0, 12 + asking, 24 * head + (0 if asking == position else 1)] = 1
            p["0.attention.qkv"][0, 12, 48 + 24 * head] = 1000  # the digit
            p["0.attention.qkv"][0, 13, 48 + 24 * head + 1] = 1000  # EOS
            p["0.attention.qkv"][0, :10, 96 + 24 * head : 106 + 24 * head] = torch.eye(10)
        for digit in range(10):
            p["0.attention.out"][0, digit, (digit + 7) % 10] = 10
            p["0.attention.out"][0, 24 + digit, (digit + 7) // 10] = 10
        return p

    def test_attention_adds_and_the_ffn_does_not_matter(self):
        every = self.task.everything()
        left = component_ablation(self.architecture, self.parameters(), stacked([every]), [SEED])
        assert accuracy(correct(self.architecture, self.parameters(), stacked([every]))).item() == 1
        assert left["no_ffn_accuracy"].item() == 1

    def test_without_attention_a_token_answers_itself(self):
        """At EOS that is never right; the ones digit is its own overflow for 4 + 7 = 11 alone: 1 of 20."""
        left = component_ablation(
            self.architecture, self.parameters(), stacked([self.task.everything()]), [SEED]
        )
        assert left["no_attention_accuracy"].item() == pytest.approx(1 / 20)

    def test_the_final_eos_does_not_count(self):
        """The network never predicts it, and is still entirely right."""
        every = self.task.everything()
        predicted = forward(self.architecture, self.parameters(), every.tokens[None]).logits[0].argmax(-1)
        assert not (predicted[:, 2] == every.targets[:, 2]).any()
        assert correct(self.architecture, self.parameters(), stacked([every])).shape == (1, 10, 2)


class TestLogitAttribution:
    @pytest.mark.parametrize("norm", ["none", "rms"])
    @pytest.mark.parametrize("name", ["dense", "moe", "moe_glu"])
    @pytest.mark.parametrize("task", ["add7", "modular_addition", "histogram"])
    def test_the_terms_sum_to_the_correct_logit(self, task, name, norm):
        spec = arm(name, "smoke", task, 1, norm=norm)
        architecture = spec.architecture
        p = {n: t.double() for n, t in stack([architecture.initialise(s) for s in (1, 2)]).items()}
        if norm == "rms":  # a learned scale is not all ones
            p["norm"] = p["norm"] + torch.rand(
                p["norm"].shape, generator=generator(0, "scale"), dtype=torch.double
            )
        every = [spec.task_object.evaluation(s, 40) for s in (1, 2)]
        targets = torch.stack([s.targets for s in every])
        trace = forward(architecture, p, torch.stack([s.tokens for s in every]))
        terms = correct_logit_terms(architecture, p, trace, targets)
        whole = trace.logits.gather(-1, targets[..., None])[..., 0]
        assert float((sum(terms.values()) - whole).abs().max()) < 1e-11
        share = attention_share(architecture, p, stacked(every))
        scored = list(architecture.task.scored)
        for m in range(2):
            a, f = (float(terms[n][m][:, scored].abs().mean()) for n in ("attention", "ffn"))
            assert share[m] == pytest.approx(a / (a + f), abs=1e-12)

    def test_it_is_not_defined_for_two_layers(self):
        spec = arm("dense", "smoke", "add7", 1, depth=2)
        p = stack([spec.architecture.initialise(1)])
        assert attention_share(spec.architecture, p, stacked([spec.task_object.evaluation(1, 0)])) == [None]


class TestRouterInformation:
    architecture = Architecture(
        Histogram(SYMBOLS, SYMBOLS),
        d_model=24,
        heads=1,
        ffn=FeedForward(25, 5, 1, "learned", activation="relu"),
    )

    def routed(self, operations: torch.Tensor, constant: bool = False) -> float:
        """A router that sends every symbol to an expert of its own, or all to one."""
        p = empty(self.architecture)
        p["embed"][0, :, :5] = torch.eye(5)
        if constant:
            p["embed"][0, :, 6] = 1
            p["0.ffn.router"][0, 6, 2] = 1
        else:
            p["0.ffn.router"][0, :5] = torch.eye(5)[ARRANGED]
        tokens = balanced()
        (nmi,) = router_nmi(self.architecture, p, stacked([Sequences(tokens, tokens, operations)]))
        return nmi

    def test_it_is_one_where_the_expert_is_the_operation(self):
        assert self.routed(balanced()) == pytest.approx(1, abs=1e-9)

    def test_it_is_one_under_any_names_of_the_operations(self):
        assert self.routed((balanced() + 2) % 5) == pytest.approx(1, abs=1e-9)

    def test_it_is_zero_where_all_go_to_one_expert(self):
        assert self.routed(balanced(), constant=True) == pytest.approx(0, abs=1e-9)

    def test_it_is_near_zero_when_the_labels_are_shuffled(self):
        shuffled = balanced().flatten()[torch.randperm(250, generator=generator(0))].view(50, 5)
        assert self.routed(shuffled) < 0.1

    def test_it_is_the_formula(self):
        """Mutual information over the mean of both entropies."""
        tokens = balanced()
        operations = (tokens >= 2).long()
        counts = torch.stack([((tokens == s) & (operations == o)).sum() for s in range(5) for o in range(2)])
        joint = counts.view(5, 2).double() / counts.sum()
        h = [-(q[q > 0] * q[q > 0].log()).sum() for q in (joint.sum(1), joint.sum(0), joint.flatten())]
        assert self.routed(operations) == pytest.approx(
            float((h[0] + h[1] - h[2]) / ((h[0] + h[1]) / 2)), abs=1e-9
        )

    def test_there_is_none_without_experts(self):
        parameters, sequences = planted("ffn")
        assert router_nmi(PLANTED, parameters, stacked([sequences])) == [None]


@pytest.mark.parametrize("task", ["add7", "modular_addition", "histogram"])
def test_every_moment_of_a_run_is_measured_with_its_own_parameters(task):
    """The last row is that of the last look of the curve; accuracies are accuracies."""
    spec = arm("moe", "smoke", task, 1, steps=40)
    (run,) = train([spec])
    (rows,) = measure([run])
    assert [row["moment"] for row in rows] == [
        m for m in ("first_best", "grokked", "final") if m in run.moments
    ]
    for row in rows:
        look = run.curve["step"].index(row["step"])
        for name in ("accuracy", "test_accuracy", "no_ffn_accuracy", "no_attention_accuracy"):
            assert row[name] == run.curve[name][look]
        for name, value in row.items():
            assert not name.endswith("accuracy") or value is None or 0 <= value <= 1
        assert 0 < row["attention_share"] < 1
        assert math.isfinite(row["router_nmi"])
        assert row["exact_match"] <= row["accuracy"]
