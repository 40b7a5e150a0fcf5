"""Exact sizes: the fact sheet's numbers, our own arithmetic, and PyTorch's counter of floating-point operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from reference import forward
from sparsity_moves.model import Architecture, FeedForward, count
from sparsity_moves.studies import ARMS, arm
from sparsity_moves.tasks import Addition, Histogram, ModularAddition

PAPER = {
    # FFN block: (all parameters, those active for a token), as published
    ("add7", "dense"): (33_088, 33_088),
    ("add7", "moe"): (33_536, 8_320 + 256),
    ("add7", "glu"): (32_640, 32_640),
    ("add7", "moe_glu"): (32_512, 3 * 64 * 42 + 256),
    ("add7", "moe_glu_active"): (130_816, 3 * 64 * 170 + 256),
    ("modular_addition", "dense"): (131_712, 131_712),
    ("modular_addition", "moe"): (132_608, 2 * 128 * 128 + 128 + 128 + 512),
    ("modular_addition", "glu"): (130_560, 130_560),
    ("modular_addition", "moe_glu"): (131_072, 3 * 128 * 85 + 512),
    ("modular_addition", "moe_glu_active"): (522_752, 3 * 128 * 340 + 512),
}

WIDTHS = {
    "add7": (256, 64, 170, 42),
    "modular_addition": (512, 128, 340, 85),
    "histogram": (512, 128, 340, 85),
}


@pytest.mark.parametrize(("task", "name"), list(PAPER), ids="-".join)
def test_the_ffn_block_has_the_published_parameters(task, name):
    sizes = count(arm(name, "paper", task, 42).architecture)
    assert (sizes.ffn_parameters, sizes.active_ffn_parameters) == PAPER[task, name]


@pytest.mark.parametrize("task", list(WIDTHS))
def test_widths_are_the_published_ones(task):
    dense, narrow, glu, expert_glu = WIDTHS[task]
    ffn = {name: arm(name, "paper", task, 42).architecture.ffn for name in ARMS}
    assert ffn["dense"].width == dense
    assert ffn["narrow"].width == narrow
    assert ffn["moe"].experts == 4
    assert ffn["moe"].expert_width == narrow
    assert ffn["glu"].width == glu
    assert ffn["moe_glu"].expert_width == expert_glu
    assert ffn["moe_glu_active"].expert_width == glu
    assert ffn["moe_active"].expert_width == dense


@pytest.mark.parametrize("name", list(ARMS))
@pytest.mark.parametrize("task", list(WIDTHS))
def test_counts_are_those_of_the_tensors(task, name):
    """Every parameter that exists is counted, and active are all but the experts that a token did not choose."""
    architecture = arm(name, "paper", task, 42).architecture
    tensors = {n: t for n, t in architecture.initialise(42).items() if t.is_floating_point()}
    sizes, ffn = count(architecture), architecture.ffn
    assert sizes.parameters == sum(t.numel() for t in tensors.values())
    of_experts = sum(t.numel() for n, t in tensors.items() if ".ffn." in n and not n.endswith("router"))
    idle = of_experts - of_experts * ffn.open_blocks / ffn.blocks
    assert sizes.active_parameters == sizes.parameters - idle
    assert sizes.ffn_parameters - sizes.active_ffn_parameters == idle


def test_an_moe_of_matched_width_costs_less_than_dense_by_the_experts_it_closes():
    dense, moe = (count(arm(name, "paper", "add7", 42).architecture) for name in ("dense", "moe"))
    assert dense.ffn_flops_per_token == 2 * 2 * 64 * 256
    assert moe.ffn_flops_per_token == 2 * 2 * 64 * 64 + 2 * 64 * 4
    assert dense.flops_per_token == 65_536 + (2 * 64 * 64 * 4 + 4 * 8 * 64) + 2 * 64 * 12


@pytest.mark.parametrize("name", list(ARMS))
@pytest.mark.parametrize("task", [Addition(2), ModularAddition(7), Histogram(8, 5)], ids=lambda t: t.name)
def test_pytorch_counts_the_same_operations_in_the_reference(task, name):
    """The reference computes every position and only the chosen experts: our definition of a token's FLOPs."""
    ffn = arm(name, "paper", "add7", 42, width=48).architecture.ffn
    architecture = Architecture(task, d_model=16, heads=4, depth=2 if name == "moe_top2" else 1, ffn=ffn)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(architecture, architecture.initialise(0), task.evaluation(0, 1).tokens[:1])
    assert counter.get_total_flops() == task.length * count(architecture).flops_per_token


def test_a_norm_adds_its_scales_and_no_products():
    plain, norm = (count(Architecture(Addition(), norm=n)) for n in ("none", "rms"))
    assert norm.parameters - plain.parameters == 3 * 64
    assert norm.flops_per_token == plain.flops_per_token


def test_layers_add_up():
    one, three = (
        count(Architecture(Addition(), depth=d, ffn=FeedForward(256, 4, 1, "learned"))) for d in (1, 3)
    )
    a_layer = 4 * 64 * 64 + 64 + one.ffn_parameters
    assert three.parameters - one.parameters == 2 * a_layer
    assert three.ffn_parameters == one.ffn_parameters
    unembedding = 2 * 64 * 12
    assert three.flops_per_token - unembedding == 3 * (one.flops_per_token - unembedding)
