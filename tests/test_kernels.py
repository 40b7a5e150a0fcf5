"""The kernels compute what the masked form computes, wherever the gate is not zero."""

import dataclasses

import pytest
import torch

from sparsity_moves.kernels import open_experts
from sparsity_moves.kernels.dispatch import dispatched_experts
from sparsity_moves.model import REFERENCE, FeedForward, Kernels, Parameters, Routing, forward, stack
from sparsity_moves.model.feedforward import combine, hidden_units
from sparsity_moves.studies import arm
from sparsity_moves.training import Fleet, Spec
from sparsity_moves.training.data import batches

LAYERS = [
    *(arm("dense", "smoke", "add7", 0, activation=activation) for activation in ("silu", "gelu", "relu")),
    arm("dense", "smoke", "modular_addition", 0, norm="rms", depth=2),
    arm("narrow", "smoke", "histogram", 0, width=20),
    arm("glu", "smoke", "add7", 0),
    arm("glu_bilinear", "smoke", "histogram", 0),
    arm("moe", "smoke", "add7", 0),
    arm("moe", "smoke", "add7", 0, experts=16),
    arm("moe_frozen", "smoke", "histogram", 0),
    arm("moe_switch", "smoke", "modular_addition", 0),
    arm("moe_switch_frozen", "smoke", "add7", 0),
    arm("moe_hash", "smoke", "add7", 0),
    arm("moe_top2", "smoke", "add7", 0, experts=8),
    arm("moe_glu", "smoke", "add7", 0),
    arm("moe_glu_active", "smoke", "histogram", 0, activation="relu"),
]
named = pytest.mark.parametrize(
    "spec", LAYERS, ids=lambda s: f"{s.task}-{s.router}-{s.gate}-{s.experts}-{s.gated}-{s.activation}"
)


def in_double(spec: Spec, models: int) -> Parameters:
    start = stack([spec.architecture.initialise(seed) for seed in range(models)])
    return {
        name: tensor.double().requires_grad_() if tensor.is_floating_point() else tensor
        for name, tensor in start.items()
    }


@named
def test_open_experts_give_the_masked_forms_outputs_and_gradients(spec: Spec) -> None:
    p = in_double(spec, 3)
    floats = [tensor for tensor in p.values() if tensor.is_floating_point()]
    inputs = spec.task_object.evaluation(0, 50).tokens[:50].expand(3, -1, -1)
    found = []
    for kernels in (REFERENCE, Kernels(feed_forward=open_experts)):
        everywhere = tuple(range(spec.task_object.length)) if spec.balance_weight else ()
        trace = forward(spec.architecture, p, inputs, balance_positions=everywhere, kernels=kernels)
        weight = torch.linspace(-1, 1, trace.logits.numel(), dtype=torch.double).view_as(trace.logits)
        loss = (trace.logits * weight).sum() + trace.balance.sum()
        gradients = torch.autograd.grad(loss, floats, allow_unused=True, materialize_grads=True)
        found.append((trace.logits, *gradients))
    for masked, grouped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, masked, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "spec",
    [spec for spec in LAYERS if spec.experts > 1],
    ids=lambda s: f"{s.task}-{s.router}-{s.gate}-{s.experts}-{s.gated}-{s.activation}",
)
def test_dispatch_by_grouped_products_gives_the_masked_forms_outputs_and_gradients(spec: Spec) -> None:
    start = stack([spec.architecture.initialise(seed) for seed in range(2)])
    p = {n: t.requires_grad_(t.is_floating_point()) for n, t in start.items()}
    floats = [tensor for tensor in p.values() if tensor.is_floating_point()]
    inputs = spec.task_object.evaluation(0, 30).tokens[:30].expand(2, -1, -1)
    found = []
    for kernels in (REFERENCE, Kernels(feed_forward=dispatched_experts)):
        trace = forward(spec.architecture, p, inputs, kernels=kernels)
        weight = torch.linspace(-1, 1, trace.logits.numel()).view_as(trace.logits)
        loss = (trace.logits * weight).sum()
        gradients = torch.autograd.grad(loss, floats, allow_unused=True, materialize_grads=True)
        found.append((trace.logits, *gradients))
    for masked, dispatched in zip(*found, strict=True):
        scale = float(masked.detach().abs().max()) + 1e-30
        assert float((dispatched - masked).detach().abs().max()) <= 1e-5 * scale


def test_dispatch_in_bf16_counts_more_tokens_than_bf16_can() -> None:
    """The whole numbers that bf16 has end at 256; an expert may have more tokens."""
    ffn = FeedForward(width=32, experts=2, router="learned", activation="gelu")
    source = torch.Generator().manual_seed(0)
    shapes = {"w_in": (16, 32), "b_in": (32,), "w_out": (32, 16), "b_out": (2, 16)}
    p = {n: torch.randn(1, *shape, generator=source).bfloat16() / 4 for n, shape in shapes.items()}
    x = torch.randn(1, 1001, 16, generator=source).bfloat16()
    chosen = torch.nn.functional.one_hot((x[..., 0] > 0.3).long(), 2).bfloat16()[:, None]
    out = dispatched_experts(ffn, p, "", x, Routing(chosen, chosen, None)).float()
    wide = {n: t.float() for n, t in p.items()}
    masked = combine(ffn, wide, "", hidden_units(ffn, wide, "", x.float()), chosen.flatten(1, 2).float())
    assert float((out - masked).abs().max()) <= 1e-2 * float(masked.abs().max())


@pytest.mark.parametrize("kernel", [open_experts, dispatched_experts], ids=lambda k: k.__name__)
@pytest.mark.parametrize(
    "experts",
    [[[0, 2, 0, 2], [1, 1, 1, 0]], [[1], [2]], [[], []]],
    ids=["experts that nobody chose", "one token", "no token"],
)
def test_where_tokens_are_few_or_all_choose_alike(kernel, experts) -> None:
    """Outputs and gradients; an expert without tokens has a gradient of zero."""
    ffn = FeedForward(width=12, experts=3, router="learned")
    source = torch.Generator().manual_seed(0)
    shapes = {"w_in": (8, 12), "b_in": (12,), "w_out": (12, 8), "b_out": (3, 8)}
    p = {n: torch.randn(2, *s, generator=source).requires_grad_() for n, s in shapes.items()}
    expert = torch.tensor(experts, dtype=torch.long)
    x = torch.randn(*expert.shape, 8, generator=source, requires_grad=True)
    chosen = torch.nn.functional.one_hot(expert, 3).float()[:, :, None]
    floats = [x, *p.values()]
    out = kernel(ffn, p, "", x, Routing(chosen, chosen, None))
    masked = combine(ffn, p, "", hidden_units(ffn, p, "", x), chosen.flatten(1, 2))
    torch.testing.assert_close(out, masked)
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    found, expected = (torch.autograd.grad((y * weight).sum(), floats) for y in (out, masked))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    used = chosen.sum((1, 2)) > 0
    units = found[1].abs().sum(1).unflatten(1, (3, 4)).sum(-1)
    assert torch.equal(units > 0, used)


@named
def test_the_kernel_rounds_the_same_in_any_stack(spec: Spec) -> None:
    """Bit by bit, after ten steps of training on a CPU."""
    ends = []
    for size in (1, 4):
        specs = [dataclasses.replace(spec, seed=seed) for seed in range(size)]
        fleet = Fleet(specs)
        by_hand = spec.experts == 1 or 2 * spec.top_k < spec.experts
        assert (fleet.kernels.feed_forward is open_experts) == by_hand
        for _, batch in zip(range(10), batches(specs, fleet.device), strict=False):
            fleet.step(*batch)
        ends.append(fleet.flat[0])
    assert torch.equal(*ends)
