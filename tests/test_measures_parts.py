"""Ablation, attribution, patching and routing in parts, on networks whose circuit was put there by hand."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from sparsity_moves.errors import UserError
from sparsity_moves.measures import ablation_parts, patching, routing_parts
from sparsity_moves.measures.ablation import component_ablation
from sparsity_moves.measures.attribution import attention_share
from sparsity_moves.measures.attribution_parts import attribution_parts, parts, wholes
from sparsity_moves.measures.tidy import Subject
from sparsity_moves.model import Architecture, FeedForward, stack
from sparsity_moves.studies import arm
from sparsity_moves.tasks import Addition, Histogram, Sequences, generator, stacked
from test_measures import ARRANGED, PLANTED, SEED, TestOneDigitAddition, balanced, empty, planted


def subject(architecture: Architecture, parameters: dict[str, torch.Tensor], *each: Sequences) -> Subject:
    return Subject(architecture, parameters, stacked(list(each)), [SEED] * len(each))


def initial(name: str, task: str, inputs: int = 60, **more: Any) -> Subject:
    """Two models as they start; numbers in double precision, so that sums can be held to each other closely."""
    specs = [arm(name, "smoke", task, seed, **more) for seed in (1, 2)]
    architecture = specs[0].architecture
    models = stack([architecture.initialise(spec.seed) for spec in specs])
    parameters = {n: t if t.dtype == torch.int64 else t.double() for n, t in models.items()}
    return Subject(
        architecture, parameters, stacked([s.task_object.evaluation(s.seed, inputs) for s in specs]), [1, 2]
    )


def rows(table: list[dict[str, list[Any]]], model: int = 0, **at: Any) -> pl.DataFrame:
    """One model's rows where columns have these values, None among them."""
    frame = pl.DataFrame(table[model], infer_schema_length=None)
    return frame.filter(*(pl.col(name).eq_missing(pl.lit(value)) for name, value in at.items()))


def carry_in_attention() -> Subject:
    """Adds 7 to one digit: head 0 writes the ones digit, head 1 the carry, the FFN nothing."""
    known = TestOneDigitAddition()
    return subject(known.architecture, known.parameters(), known.task.everything())


def carry_in_ffn() -> Subject:
    """The same, but head 1 brings the digit only, and the FFN makes the carry of it."""
    known = TestOneDigitAddition()
    p = known.parameters()
    p["embed"][0, :, 12:] = 0
    p["0.attention.out"][0, 24:34] = 0
    p["0.attention.out"][0, 24 + torch.arange(10), 20 + torch.arange(10)] = 1
    p["0.ffn.w_in"][0, 20:23, 0] = 10  # digits 0, 1 and 2 do not carry
    p["0.ffn.w_in"][0, 23:30, 1] = 10
    p["0.ffn.w_out"][0, 0, 0] = p["0.ffn.w_out"][0, 1, 1] = 10
    return subject(known.architecture, p, known.task.everything())


class TestAblationParts:
    def the_carry_is_in(self, component: str, where: Subject) -> None:
        """Without the component the overflow digit is lost; without the other nothing is."""
        found = rows(ablation_parts.ablation_parts(where), how="zero", position=1, carry=None, operation=None)
        left = dict(found.select("component", "accuracy").iter_rows())
        assert left[component] < 0.75
        assert left[{"attention": "ffn", "ffn": "attention"}[component]] == 1

    def test_a_carry_in_attention_is_found_there(self):
        self.the_carry_is_in("attention", carry_in_attention())

    def test_a_carry_in_the_ffn_needs_both(self):
        """Attention brings it the digit."""
        found = rows(
            ablation_parts.ablation_parts(carry_in_ffn()),
            how="zero",
            position=1,
            carry=None,
            operation=None,
            head=None,
        )
        left = dict(found.select("component", "accuracy").iter_rows())
        assert left["ffn"] == pytest.approx(0.1)  # the ones digit is said again: 4 + 7 = 11
        assert left["attention"] < 1

    @pytest.mark.parametrize("mutant", ["attention", "ffn"])
    def test_an_ablation_aimed_at_the_other_component_is_caught(self, mutant, monkeypatch):
        real, other = ablation_parts.replacement, {"attention": "ffn", "ffn": "attention"}
        monkeypatch.setattr(
            ablation_parts, "replacement", lambda component, *more: real(other[component], *more)
        )
        with pytest.raises(AssertionError):
            self.the_carry_is_in("attention", carry_in_attention())

    def the_heads_are_told_apart(self) -> None:
        table = ablation_parts.ablation_parts(carry_in_attention())
        found = rows(table, component="head", how="zero", carry=None, operation=None)
        left = {
            (head, position): a
            for head, position, a in found.select("head", "position", "accuracy").iter_rows()
        }
        assert left[1, 0] == 1, "the ones digit does not need the head of the carry"
        assert left[0, 1] == 1, "nor the carry that of the ones digit"
        assert left[0, 0] < 0.2
        assert left[1, 1] < 0.75

    def test_each_head_is_found_to_do_what_it_does(self):
        self.the_heads_are_told_apart()

    def test_an_ablation_of_another_head_is_caught(self, monkeypatch):
        real = ablation_parts.head_edits
        monkeypatch.setattr(
            ablation_parts, "head_edits", lambda s, layer, head, how: real(s, layer, 1 - head, how)
        )
        with pytest.raises(AssertionError):
            self.the_heads_are_told_apart()

    def test_the_carry_length_is_how_many_digits_a_carry_reaches(self):
        task = Addition(digits=3)
        where = subject(Architecture(task, 16, 1, ffn=FeedForward(4)), {}, task.everything())
        member = ablation_parts.groups(where)
        for length in range(4):
            is_so = member[None, None, length][0, :, 0]
            expected = []
            for n in range(1000):
                carry, digits, reached = 7, n, 0
                for _ in range(3):
                    carry = (digits % 10 + carry) // 10
                    digits //= 10
                    reached += carry
                expected.append(reached == length)
            assert is_so.tolist() == expected
            assert not member[None, None, length][0, :, 4].any(), "the final EOS is not scored"
            assert torch.equal(member[4, None, length][0, :, 4], is_so), "but can be looked at"

    @pytest.mark.parametrize("task", ["add7", "modular_addition", "histogram"])
    def test_all_answers_together_are_the_headlines(self, task):
        where = initial("moe", task)
        left = component_ablation(where.architecture, where.parameters, where.sequences, where.seeds)
        for model in range(2):
            table = ablation_parts.ablation_parts(where)
            found = rows(table, model, position=None, operation=None, carry=None, head=None)
            prefix = {"zero": "no", "mean": "mean", "resample": "resample"}
            for component, how, accuracy in found.select("component", "how", "accuracy").iter_rows():
                if component != "none":
                    column = left[f"{prefix[how]}_{component}_accuracy"]
                    assert accuracy == pytest.approx(column[model].item(), abs=1e-7)

    def test_a_count_that_never_occurs_has_no_accuracy(self):
        found = rows(ablation_parts.ablation_parts(initial("dense", "histogram")))
        assert found.filter(operation=4)["accuracy"].null_count() == found.filter(operation=4).height


class TestAttributionParts:
    @pytest.mark.parametrize("more", [{}, {"norm": "rms"}, {"depth": 2}])
    @pytest.mark.parametrize("name", ["dense", "moe_switch", "moe_glu", "moe_hash", "tree", "tree_balanced"])
    @pytest.mark.parametrize("task", ["add7", "modular_addition", "histogram"])
    def test_the_parts_sum_to_the_residual_stream_and_to_the_logits(self, task, name, more):
        where = initial(name, task, **more)
        written = dict(parts(where))
        whole = dict(wholes(where))
        total = sum(written.values())
        residual = where.trace.residual
        assert float((total - residual).abs().max()) < 1e-11
        for kind, of in (
            ("attention", ("head", "attention_bias")),
            ("ffn", ("expert",)),
            ("embedding", ("token", "position")),
        ):
            together = sum(x for part, x in written.items() if part.name in of)
            assert (
                float((together - sum(x for part, x in whole.items() if part.name == kind)).abs().max())
                < 1e-11
            )
        if "norm" not in more:
            logits = torch.stack([x @ where.trace.unembed[:, None] for x in written.values()]).sum(0)
            assert float((logits - where.trace.logits).abs().max()) < 1e-10
        table = rows(attribution_parts(where), 1)
        small = ["token", "position", "head", "attention_bias", "expert"]
        sums = (
            table.filter(pl.col("part").is_in(small))
            .group_by("position")
            .agg(pl.col("logit", "margin").sum())
        )
        scored = list(where.architecture.task.scored)
        right = where.trace.logits.gather(-1, where.sequences.targets[..., None])[..., 0]
        margin = right - where.trace.logits.mean(-1)
        for position, logit, above in sums.iter_rows():
            at = scored if position is None else [position]
            assert logit == pytest.approx(right[1][:, at].mean().item(), abs=1e-5)
            assert above == pytest.approx(margin[1][:, at].mean().item(), abs=1e-5)

    def test_the_published_share_is_theirs(self):
        where = initial("moe", "add7")
        (expected, _) = attention_share(where.architecture, where.parameters, where.sequences)
        mean = dict(
            rows(attribution_parts(where)).group_by("part").agg(pl.col("magnitude").mean()).iter_rows()
        )
        assert mean["attention"] / (mean["attention"] + mean["ffn"]) == pytest.approx(expected, abs=1e-6)

    def test_a_planted_answer_is_all_its_heads(self):
        """Each correct logit is 1, and the one head writes it, with length 1."""
        parameters, sequences = planted("attention")
        table = rows(attribution_parts(subject(PLANTED, parameters, sequences)))
        assert dict(table.select("part", "logit").iter_rows()) == pytest.approx(
            dict.fromkeys(("token", "position", "attention_bias", "expert", "embedding", "ffn"), 0.0)
            | dict.fromkeys(("head", "attention", "residual"), 1.0)
        )
        assert table.filter(part="head")["norm"].to_list() == pytest.approx([1.0])
        assert table.filter(part="head")["margin"].to_list() == pytest.approx(
            [0.8]
        )  # the mean of five is 0.2

    def test_a_planted_answer_is_all_its_experts(self):
        parameters, sequences = planted("ffn")
        table = rows(attribution_parts(subject(PLANTED, parameters, sequences)))
        assert table.filter(part="expert")["logit"].to_list() == pytest.approx([1.0])
        assert table.filter(part="head")["logit"].to_list() == pytest.approx([0.0])


class TestPatching:
    def the_answer_goes_with(self, components: set[str], where: Subject) -> None:
        table = rows(patching.patching(where))
        assert set(table["operation"]) == {patching.CARRY, patching.COPY}, "both directions"
        for component in ("attention", "ffn"):
            found = table.filter(component=component)
            expected = [float(component in components)] * found.height
            for rate in ("flip_rate", "operation_rate", "change_rate"):
                assert found[rate].to_list() == expected

    def test_a_carry_in_attention_goes_with_its_output(self):
        self.the_answer_goes_with({"attention"}, carry_in_attention())

    def test_a_carry_in_the_ffn_goes_with_its_output(self):
        table = rows(patching.patching(carry_in_ffn()))
        assert table.filter(component="ffn")["flip_rate"].to_list() == [1.0] * 4

    def test_a_patch_of_the_other_component_is_caught(self, monkeypatch):
        real, other = patching.patched, {"attention": "ffn", "ffn": "attention"}
        monkeypatch.setattr(patching, "patched", lambda s, component, *more: real(s, other[component], *more))
        with pytest.raises(AssertionError):
            self.the_answer_goes_with({"attention"}, carry_in_attention())

    def test_a_patch_from_the_recipient_itself_is_caught(self, monkeypatch):
        real = patching.patched
        monkeypatch.setattr(
            patching, "patched", lambda s, c, at, pairs: real(s, c, at, pairs[:1].expand(2, -1, -1))
        )
        with pytest.raises(AssertionError):
            self.the_answer_goes_with({"attention"}, carry_in_attention())

    @pytest.mark.parametrize("matched", [True, False])
    def test_donors_need_another_operation_and_matched_ones_have_the_digit(self, matched):
        every = Addition(digits=3).everything()
        digit, operation = every.tokens[:, 1], every.operations[:, 1]
        asked = digit if matched else torch.zeros_like(digit)
        recipient, donor = patching.draw(asked, operation, patching.CARRY, 4000, generator(0, "pairs"))
        assert (operation[recipient] == patching.CARRY).all()
        assert (operation[donor] == patching.COPY).all()
        assert bool((digit[recipient] == digit[donor]).all()) == matched
        assert len(recipient.unique()) > 600  # of 700, and nearly each of 300
        assert len(donor.unique()) == 300

    def test_where_a_digit_has_no_donor_there_is_no_pair(self):
        digit, operation = torch.tensor([1, 1, 2, 2]), torch.tensor([1, 1, 1, 2])
        recipient, donor = patching.draw(digit, operation, 1, 50, generator(0))
        assert set(recipient.tolist()) == {2}
        assert set(donor.tolist()) == {3}

    @pytest.mark.parametrize("component", ["attention", "ffn"])
    @pytest.mark.parametrize("more", [{}, {"norm": "rms"}])
    def test_it_is_the_sum_with_the_donors_part(self, component, more):
        """Written out: embedding of the one, attention's output of the other, the FFN of what comes of both."""
        where = initial("glu", "add7", **more)
        pairs = torch.tensor([[[3, 50], [17, 99]], [[44, 9], [8, 61]]])  # (2, M, K)
        found = patching.patched(where, component, 1, pairs)
        p, trace = where.parameters, where.trace
        for model in range(2):
            for k in range(2):
                i, j = pairs[:, model, k].tolist()
                layer = trace.layers[0]
                attended = layer.attention[model, j if component == "attention" else i, 1]
                stream = trace.embedding[model, i, 1] + attended
                x = stream
                if more:
                    x = torch.nn.functional.rms_norm(x, x.shape) * p["0.ffn.norm"][model]
                hidden = torch.nn.functional.silu(x @ p["0.ffn.w_in"][model]) * (x @ p["0.ffn.w_up"][model])
                output = (
                    hidden @ p["0.ffn.w_out"][model] if component == "attention" else layer.ffn[model, j, 1]
                )
                final = stream + output
                if more:
                    final = torch.nn.functional.rms_norm(final, final.shape) * p["norm"][model]
                assert found[model, k] == (p["embed"][model] @ final).argmax()

    def test_other_tasks_are_refused(self):
        with pytest.raises(UserError, match="matches the digits of add7"):
            patching.patching(initial("dense", "histogram"))


class TestRoutingParts:
    architecture = Architecture(
        Histogram(5, 5), d_model=24, heads=1, ffn=FeedForward(5, 5, 1, "learned", activation="relu")
    )

    def sorted_by_symbol(self) -> Subject:
        """Each symbol has an expert of its own, which alone knows its answer; the operation is the symbol."""
        p = empty(self.architecture)
        p["embed"][0, :, :5] = torch.eye(5)
        p["unembed"][0, 15:20] = torch.eye(5)
        p["0.ffn.router"][0, :5] = 10 * torch.eye(5)[ARRANGED]
        expert = ARRANGED  # a symbol's
        p["0.ffn.w_in"][0, torch.arange(5), expert] = 1
        p["0.ffn.w_out"][0, expert, 15 + ARRANGED] = 1
        tokens = balanced()
        return subject(self.architecture, p, Sequences(tokens, ARRANGED[tokens], tokens))

    def the_router_sorts_by_operation(self) -> None:
        whole = rows(routing_parts.routing_parts(self.sorted_by_symbol()), expert=None, operation=None)
        assert whole.select("accuracy", "nmi", "within").row(0) == pytest.approx((1, 1, 1), abs=1e-6)

    def test_a_router_equal_to_the_label_tells_all(self):
        self.the_router_sorts_by_operation()

    def test_shuffled_routing_is_caught(self, monkeypatch):
        real = routing_parts.first

        def shuffled(routing):
            expert = real(routing)
            order = torch.randperm(expert.shape[1], generator=generator(0))
            return expert[:, order]

        monkeypatch.setattr(routing_parts, "first", shuffled)
        with pytest.raises(AssertionError):
            self.the_router_sorts_by_operation()

    def test_the_router_as_it_began_is_the_null(self):
        whole = rows(routing_parts.routing_parts(self.sorted_by_symbol()), expert=None, operation=None)
        assert 0 <= whole["initial_nmi"].item() < 0.99

    def test_an_experts_load_and_its_loss_are_those_of_its_operation(self):
        table = rows(routing_parts.routing_parts(self.sorted_by_symbol()))
        for symbol in range(5):
            for expert in range(5):
                (row,) = table.filter(expert=expert, operation=symbol).iter_rows(named=True)
                its_own = ARRANGED[symbol] == expert
                assert row["load"] == float(its_own)
                # Where nothing is written all logits are 0, and answer 0 is said.
                assert row["knocked_out"] == float(not its_own or ARRANGED[symbol] == 0)
        loads = table.filter(pl.col("expert").is_not_null() & pl.col("operation").is_null())["load"]
        assert loads.to_list() == pytest.approx([0.2] * 5)

    @pytest.mark.parametrize("name", ["moe", "moe_top2", "moe_hash_context"])
    @pytest.mark.parametrize("task", ["add7", "histogram"])
    def test_the_information_is_scikit_learns(self, task, name):
        where = initial(name, task)
        scored = list(where.architecture.task.scored)
        for model in range(2):
            expert = where.trace.layers[0].routing.gates[model].argmax(-1)[:, scored]
            operation = where.sequences.operations[model][:, scored]
            found = rows(routing_parts.routing_parts(where), model, expert=None, operation=None)
            expected = normalized_mutual_info_score(operation.flatten(), expert.flatten())
            assert found["nmi"].item() == pytest.approx(expected, abs=1e-6)
            assert ("initial_nmi" in found) == (name != "moe_hash_context")
            if "initial_nmi" in found:  # these models are as they began
                assert found["initial_nmi"].item() == found["nmi"].item()

    def test_beyond_the_position_a_router_by_position_tells_nothing(self):
        """The expert is the read-out, and so is the operation: all by position, nothing beyond."""
        expert = torch.eye(3).expand(1, 20, 3, 3)
        operation = torch.tensor([0, 1, 0]).expand(1, 20, 3)[..., None] == torch.arange(2)
        operation = operation.clone()
        operation[0, :5, 2] = torch.tensor([False, True])  # something to be told at the last
        nmi, within = routing_parts.information(routing_parts.meetings(expert, operation))
        assert nmi.item() > 0.3
        assert within.item() == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("name", ["dense", "tree"])
    def test_without_experts_it_is_refused(self, name):
        with pytest.raises(UserError, match="has no routing"):
            routing_parts.routing_parts(initial(name, "add7"))
