"""Frequencies: planted waves, NumPy's transform and the explicit tensor as references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparsity_moves.errors import UserError
from sparsity_moves.measures.bilinear import bilinear, singular_forms, tensor
from sparsity_moves.measures.fourier import averaged, by_sum, fourier, neuron_rows, neurons, shares, spectrum
from sparsity_moves.measures.progress import progress
from sparsity_moves.measures.tidy import Subject
from sparsity_moves.model import Architecture, FeedForward, forward
from sparsity_moves.model.feedforward import combine, hidden_units
from sparsity_moves.tasks import ModularAddition, generator, stacked
from test_measures import SEED, empty
from test_measures_parts import initial, rows

P = 13
TASK = ModularAddition(P, 0.5)


def wave(k: int, p: int = P, phase: float = 0.3) -> torch.Tensor:
    return (2 * math.pi * k * torch.arange(p) / p + phase).cos()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(SEED, "signals", *shape), dtype=torch.double)


def mean_of(x: torch.Tensor) -> np.ndarray:
    """(pairs, S) averaged over a + b = s, by a loop."""
    return np.stack([np.mean([x[a * P + (s - a) % P].numpy() for a in range(P)], axis=0) for s in range(P)])


class TestSpectrum:
    def test_a_wave_is_one_half_or_one_by_its_name(self):
        for k in range(1, P // 2 + 1):
            found = spectrum(wave(k).view(1, P, 1))
            assert found.full.item() == pytest.approx(0.5)
            assert found.paired.item() == pytest.approx(1)
            assert found.frequency.item() == k

    def test_half_the_length_is_its_own_conjugate(self):
        found = spectrum(wave(6, 12).view(1, 12, 1))
        assert (found.full.item(), found.paired.item(), found.frequency.item()) == (
            pytest.approx(1),
            pytest.approx(1),
            6,
        )

    def test_two_waves_share(self):
        found = spectrum((wave(2) + wave(5)).view(1, P, 1))
        assert found.paired.item() == pytest.approx(0.5)

    @pytest.mark.parametrize("p", [12, 13, 59])
    def test_it_is_numpys_transform(self, p):
        signals = noise(2, p, 6)
        power = np.abs(np.fft.fft(signals.numpy(), axis=1)) ** 2
        power[:, 0] = 0
        found = spectrum(signals)
        assert found.full.numpy() == pytest.approx(power.max(1) / power.sum(1))
        assert found.power.numpy() == pytest.approx(power.sum(1))
        strongest = power.argmax(1)
        if p % 2:
            assert (found.frequency.numpy() == np.minimum(strongest, p - strongest)).all()
            assert found.paired.numpy() == pytest.approx(2 * found.full.numpy())

    def test_a_silent_signal_has_none(self):
        found = spectrum(torch.full((1, P, 1), 3.0) + 1e-9 * wave(2).view(1, P, 1))
        assert (found.full.item(), found.paired.item(), found.frequency.item()) == (0, 0, 0)

    def test_the_mean_over_a_sum_is_the_loops(self):
        x = noise(1, P * P, 4)
        assert averaged(x, by_sum(P, x.device))[0].numpy() == pytest.approx(mean_of(x[0]))
        a, b = torch.arange(P * P) // P, torch.arange(P * P) % P
        assert (((a - b) % P)[by_sum(P, x.device, -1)] == torch.arange(P)[:, None]).all()


def adder(k: int = 3) -> Subject:
    """Embeds a on a circle at frequency k, adds both by attention, and has: a neuron of cos, one of sin, one that is
    dead, and two that see everything but write nothing."""
    architecture = Architecture(TASK, d_model=8, heads=1, ffn=FeedForward(5, activation="relu"))
    p = empty(architecture)
    angle = 2 * math.pi * k * torch.arange(P) / P
    p["embed"][0, :P, 0], p["embed"][0, :P, 1] = angle.cos(), angle.sin()
    p["0.attention.qkv"][0, :2, 16:18] = torch.eye(2)
    p["0.attention.out"][0, :2, :2] = 3 * torch.eye(2)
    for neuron, (x, y) in enumerate([(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (1.0, -1.0)]):
        p["0.ffn.w_in"][0, 0, neuron], p["0.ffn.w_in"][0, 1, neuron] = x, y
    p["0.ffn.w_out"][0, 0, 2] = p["0.ffn.w_out"][0, 1, 3] = p["0.ffn.w_out"][0, 2, 4] = 1
    return Subject(architecture, p, stacked([TASK.evaluation(SEED, 0)]), [SEED])


class TestNeurons:
    def test_a_planted_neuron_is_found_at_its_frequency(self):
        """relu(cos a + cos b) over a + b is |cos| of half the angle: its own frequency, and few overtones."""
        for k in (2, 3):
            found, _ = neurons(adder(k))
            assert found.frequency[0].tolist() == [k, k, 0, k, k]
            assert (found.paired[0, :2] > 0.9).all()
            assert found.paired[0, 2] == 0

    def test_the_planted_frequency_shuffled_over_the_residues_is_lost(self):
        where = adder()
        order = torch.randperm(P, generator=generator(SEED))
        where.parameters["embed"][0, :P] = where.parameters["embed"][0, :P][order]
        found, _ = neurons(where)
        assert (found.paired[0, :2] < 0.8).all()

    def test_those_alive_are_those_that_are_heard(self):
        _, live = neurons(adder())
        assert live[0].tolist() == [True, True, False, False, False]
        table = rows(fourier(adder()))
        count = dict(table.filter(table["count"].is_not_null()).select("site", "count").iter_rows())
        assert count == {"neurons": 5, "live_neurons": 2}
        full = dict(table.filter(table["count"].is_not_null()).select("site", "full").iter_rows())
        assert full["live_neurons"] > 0.45
        assert full["neurons"] < full["live_neurons"], "the dead one counts as 0"

    def test_every_neuron_has_a_row(self):
        found, live = neurons(initial("moe_glu", "modular_addition"))
        table = rows(neuron_rows(initial("moe_glu", "modular_addition")), 1)
        assert table["full"].to_list() == pytest.approx(found.full[1].tolist(), rel=1e-6)
        assert table["live"].to_list() == live[1].tolist()
        assert table["expert"].value_counts()["count"].to_list() == [10] * 4

    def test_they_are_measured_by_hand(self):
        where = initial("glu", "modular_addition")
        hidden = where.trace.layers[0].hidden[1, :, 0]
        p = 7
        mean = np.stack([hidden[[a * p + (s - a) % p for a in range(p)]].mean(0).numpy() for s in range(p)])
        power = np.abs(np.fft.fft(mean, axis=0)) ** 2
        power[0] = 0
        table = rows(fourier(where), 1)
        row = table.filter(site="neurons")
        assert row["full"].item() == pytest.approx((power.max(0) / power.sum(0)).mean(), rel=1e-6)
        assert row["full_sd"].item() == pytest.approx((power.max(0) / power.sum(0)).std(), rel=1e-5)

    def test_principal_components_are_numpys(self):
        where = initial("dense", "modular_addition")
        output = where.trace.layers[0].ffn[0, :, 0].numpy()
        centred = output - output.mean(0)
        _, size, directions = np.linalg.svd(centred, full_matrices=False)
        found = rows(fourier(where)).filter(site="components")
        assert found["share"].to_list() == pytest.approx((size**2 / (size**2).sum())[:10], rel=1e-5)
        scores = torch.from_numpy(centred @ directions[:3].T)[None]
        expected = spectrum(averaged(scores, by_sum(7, scores.device))).full[0]
        assert found["full"].to_list()[:3] == pytest.approx(expected.tolist(), rel=1e-4)


def answering(logits: torch.Tensor) -> Subject:
    """A model whose logits are given: (pairs, classes)."""
    where = adder()
    where.trace.__dict__["logits"] = logits.float()[None, :, None]
    return where


def added(frequencies: list[int], size: float = 20.0) -> torch.Tensor:
    """Σ_k cos(2πk(a + b - c)/p): what an adder by trigonometric identities says; "=" is never said."""
    pair, c = torch.arange(P * P), torch.arange(P)
    s = (pair // P + pair % P)[:, None] - c
    logits = sum(size * (2 * math.pi * k * s / P).cos() for k in frequencies)
    return torch.cat([logits, torch.full((P * P, 1), -100.0)], 1)


class TestLogits:
    def test_a_wave_of_the_sum_is_all_of_the_sum_and_none_of_the_difference(self):
        logits = added([3])[None, :, :P]
        found = shares(logits, P)[0]
        assert found[2].item() == pytest.approx(1, abs=1e-6)
        assert found.sum().item() == pytest.approx(1, abs=1e-6)
        assert shares(logits, P, -1).sum().item() == pytest.approx(0, abs=1e-6)

    def test_shares_are_those_of_the_two_dimensional_transform(self):
        logits = noise(1, P * P, 5)
        power = np.abs(np.fft.fft2(logits[0].numpy().reshape(P, P, 5), axes=(0, 1))) ** 2
        power[0, 0] = 0
        of_sum, of_difference = shares(logits, P)[0], shares(logits, P, -1)[0]
        for k in range(1, P // 2 + 1):
            assert of_sum[k - 1].item() == pytest.approx(2 * power[k, k].sum() / power.sum())
            assert of_difference[k - 1].item() == pytest.approx(2 * power[k, P - k].sum() / power.sum())


class TestProgress:
    def test_a_trigonometric_adder_loses_all_without_its_frequencies_and_nothing_without_the_rest(self):
        clean = added([2, 5])
        table = rows(progress(answering(clean + 0.1 * noise(P * P, P + 1))))
        assert table["key_frequencies"].to_list() == [2, 2]
        for row in table.iter_rows(named=True):
            assert row["restricted_loss"] < row["loss"] + 0.01
            assert row["excluded_loss"] > 2
            assert row["sum_share"] > 0.95

    def test_an_adder_by_heart_is_the_other_way_round(self):
        """Right on every pair, each for itself: nothing in a + b but what the answers themselves make."""
        pair = torch.arange(P * P)
        logits = torch.nn.functional.one_hot((pair // P + pair % P) % P, P + 1) * 5.0 + 8 * noise(
            P * P, P + 1
        )
        table = rows(progress(answering(logits)))
        assert (table["restricted_loss"] != table["loss"]).all()
        assert table["sum_share"][0] < 0.5

    def test_the_losses_are_those_of_the_two_dimensional_transform(self):
        logits = added([2, 5], 3.0) + noise(P * P, P + 1)
        where = answering(logits)
        table = rows(progress(where))
        keys = (
            shares(where.trace.logits[:, :, 0], P)[0].argsort(descending=True)[: table["key_frequencies"][0]]
            + 1
        )
        given = where.trace.logits[0, :, 0].double().numpy().reshape(P, P, P + 1)
        whole = np.fft.fft2(given, axes=(0, 1))
        kept, wave = np.zeros_like(whole), np.zeros_like(whole)
        kept[0, 0] = whole[0, 0]
        for k in keys.tolist():
            for i, j in ((k, k), (P - k, P - k), (k, P - k), (P - k, k)):
                kept[i, j] = whole[i, j]
            for i in (k, P - k):
                wave[i, i] = whole[i, i]
        restricted = torch.from_numpy(np.fft.ifft2(kept, axes=(0, 1)).real.reshape(P * P, -1))
        excluded = torch.from_numpy((given - np.fft.ifft2(wave, axes=(0, 1)).real).reshape(P * P, -1))
        held_out, targets = where.sequences.held_out[0], where.sequences.targets[0, :, 0]
        for row, chosen in zip(table.iter_rows(named=True), (~held_out, held_out), strict=True):
            for name, values in (("restricted_loss", restricted), ("excluded_loss", excluded)):
                loss = torch.nn.functional.cross_entropy(values[chosen], targets[chosen])
                assert row[name] == pytest.approx(loss.item(), rel=1e-5)


class TestBilinear:
    def test_its_vectors_are_those_of_the_tensor_written_out(self):
        w_in, w_up, w_out = noise(2, 6, 9), noise(2, 6, 9), noise(2, 9, 6)
        values, weights = singular_forms(w_in, w_up, w_out, 4)
        explicit = tensor(w_in, w_up, w_out).flatten(2)
        _, size, right = torch.linalg.svd(explicit, full_matrices=False)
        assert torch.allclose(values, size[:, :4])
        forms = torch.einsum("bsm,bjm,bkm->bsjk", weights, w_in, w_up).flatten(2)
        for m in range(2):
            for s in range(4):
                assert abs(float(forms[m, s] @ right[m, s])) == pytest.approx(1)

    def test_without_a_nonlinearity_the_layer_is_its_tensor_exactly(self):
        where = initial("glu_bilinear", "modular_addition")
        ffn, p = where.architecture.ffn, where.parameters
        x = noise(2, 30, 32)
        output = combine(ffn, p, "0.ffn.", hidden_units(ffn, p, "0.ffn.", x), None)
        whole = tensor(p["0.ffn.w_in"], p["0.ffn.w_up"], p["0.ffn.w_out"])
        assert torch.allclose(torch.einsum("bijk,bnj,bnk->bni", whole, x, x), output, atol=1e-12)

    def planted(self) -> Subject:
        """cos a cos b - sin a sin b: a layer that writes cos(a + b)."""
        architecture = Architecture(
            TASK, d_model=8, heads=1, ffn=FeedForward(2, gated=True, activation="none")
        )
        p = empty(architecture)
        angle = 2 * math.pi * 4 * torch.arange(P) / P
        p["embed"][0, :P, 0], p["embed"][0, :P, 1] = angle.cos(), angle.sin()
        p["0.ffn.w_in"][0, :2] = p["0.ffn.w_up"][0, :2] = torch.eye(2)
        p["0.ffn.w_out"][0, 0, 5], p["0.ffn.w_out"][0, 1, 5] = 1, -1
        return Subject(architecture, p, stacked([TASK.evaluation(SEED, 0)]), [SEED])

    def test_a_planted_product_is_one_wave_of_the_sum(self):
        first = rows(bilinear(self.planted())).row(0, named=True)
        assert (first["frequency"], first["full"], first["paired"]) == (
            4,
            pytest.approx(0.5),
            pytest.approx(1),
        )
        assert first["share"] == pytest.approx(1)

    def test_the_wrong_weights_are_caught(self):
        """W_up in another order: no wave of the sum any more."""
        where = self.planted()
        where.parameters["0.ffn.w_up"][0, :2] = torch.eye(2).flip(0)
        first = rows(bilinear(where)).row(0, named=True)
        assert first["share"] == pytest.approx(1)
        assert first["frequency"] == 0, "cos a sin b less its mirror image depends on a - b alone"

    def test_experts_have_tensors_of_their_own(self):
        table = rows(bilinear(initial("moe_glu", "modular_addition")))
        assert table["expert"].unique().sort().to_list() == [None, 0, 1, 2, 3]
        assert (table["share"] <= 1).all()

    def test_a_layer_without_a_gate_is_refused(self):
        with pytest.raises(UserError, match="only a gated layer"):
            bilinear(initial("dense", "modular_addition"))


def test_other_tasks_are_refused():
    with pytest.raises(UserError, match="asked of modular_addition, not of add7"):
        fourier(initial("dense", "add7"))


def test_the_planted_adder_attends_to_both_alike():
    """The fixture is what it says: two thirds of the circle's sum stand at "="."""
    where = adder()
    trace = forward(where.architecture, where.parameters, where.sequences.tokens)
    both = where.parameters["embed"][0, where.sequences.tokens[0, :, :2]].sum(1)
    assert torch.allclose(trace.layers[0].attention[0, :, 0], both, atol=1e-5)
