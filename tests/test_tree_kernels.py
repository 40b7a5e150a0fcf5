"""Trees' kernels compute what the masked form computes, and walk the paths that it walks.

The CPU's run here, and the GPU's too: without a GPU in Triton's interpreter, which is chosen when Triton is imported,
so in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sparsity_moves.kernels.tree import floor, forest, grouped, masked, tree_layer, walk
from sparsity_moves.model import FeedForward
from sparsity_moves.model.feedforward import ACTIVATIONS, hidden_units
from sparsity_moves.model.tree import by_path
from sparsity_moves.tasks import generator


def gather(x, w_in, b_in, w_out, depth, activation):
    """The gather form, as public code has it: each token fetches the rows on its paths, one level after another."""
    kind, (x, w_in, b_in, w_out) = x.dtype, (t.float() for t in (x, w_in, b_in, w_out))
    roots = torch.arange(0, len(w_in), (2 << depth) - 1)
    node, out = torch.zeros(len(x), len(roots), dtype=torch.long), torch.zeros_like(x)
    for _ in range(depth + 1):
        unit = roots + node
        response = (x[:, None] * w_in[unit]).sum(-1) + b_in[unit]
        out = out + (ACTIVATIONS[activation](response)[..., None] * w_out[unit]).sum(1)
        node = 2 * node + 1 + (response > 0)
    return out.to(kind)


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = {"gather": (gather, "cpu"), "grouped": (grouped, "cpu"), "walk": (walk, "cpu")}
IN_BF16 = {"gather": gather, "grouped": forest, "walk": forest}
"""A CPU computes bf16 in fp32, and rounds at the end."""
if DEVICE == "cuda" or INTERPRETED:
    if INTERPRETED:
        import interpreter  # noqa: F401
    from sparsity_moves.kernels.triton import tree as on_gpu

    KERNELS["triton"] = (on_gpu.forest, DEVICE)
    IN_BF16["triton"] = on_gpu.forest
else:

    def test_the_gpus_kernels_in_the_interpreter():
        pytest.importorskip("triton", reason="Triton is there on Linux only")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", __file__],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert " passed" in done.stdout


def trees(number: int, depth: int, activation="gelu", **more) -> FeedForward:
    width = number * (2 ** (depth + 1) - 1) + more.get("always_on", 0)
    return FeedForward(width, router="tree", tree_depth=depth, activation=activation, **more)


def layer(ffn: FeedForward, tokens: int, d_model: int, seed: int = 0):
    """x, W_in, b_in, W_out, as a layer has them at its start."""
    source = generator(seed, "trees")
    x = torch.randn(tokens, d_model, generator=source)
    w_in, b_in = (
        torch.empty(shape).uniform_(-1, 1, generator=source) / d_model**0.5
        for shape in ((ffn.width, d_model), (ffn.width,))
    )
    w_out = torch.empty(ffn.width, d_model).uniform_(-1, 1, generator=source) / ffn.open_blocks**0.5
    return [x, w_in, b_in, w_out]


def outcome(function, given, device="cpu", dtype=torch.float32, gradients=True):
    """The output, and the gradients of some weighted sum of it, on the CPU."""
    given = [t.to(device, dtype).requires_grad_(gradients) for t in given]
    out = function(*given)
    found = [out]
    if gradients:
        weight = torch.linspace(-1, 1, out.numel()).view_as(out).add(0.1).bfloat16()  # the same in every type
        found += torch.autograd.grad((out * weight.to(out)).sum(), given)
    return [t.detach().cpu().float() for t in found]


def assert_close(found, expected, tolerance=1e-5):
    """The largest difference, relative to the largest number."""
    for name, ours, theirs in zip(("y", "x", "w_in", "b_in", "w_out"), found, expected, strict=False):
        assert ours.isfinite().all(), name
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        assert (
            float((ours - theirs).abs().sum()) == 0 or float((ours - theirs).abs().max()) <= tolerance * scale
        ), name


SHAPES = [
    # (trees, depth, tokens, d_model)
    (1, 1, 1, 5),
    (3, 1, 20, 8),
    (2, 2, 7, 16),
    (4, 3, 64, 24),
    (5, 4, 33, 10),
    (2, 5, 300, 32),
    (1, 7, 400, 12),
    (3, 6, 1, 32),
    (2, 8, 150, 70),
]
in_both_types = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"]
)
by_kernel = pytest.mark.parametrize("kernel", list(KERNELS))


def check(kernel, ffn, given, tolerance=1e-5, dtype=torch.float32):
    """Against the masked form in fp32, of the same rounded numbers."""
    function, device = KERNELS[kernel]
    if dtype == torch.bfloat16:
        function = IN_BF16[kernel]
    gradients = kernel != "walk"
    found = outcome(lambda *g: function(*g, ffn.tree_depth, ffn.activation), given, device, dtype, gradients)
    given = [t.to(dtype).float() for t in given]
    assert_close(found, outcome(lambda *g: masked(ffn, *g), given, gradients=gradients), tolerance)


@by_kernel
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_the_masked_forms(shape, kernel):
    number, depth, tokens, d_model = shape
    ffn = trees(number, depth)
    check(kernel, ffn, layer(ffn, tokens, d_model))


@by_kernel
@pytest.mark.parametrize("activation", ["relu", "silu", "none"])
def test_with_every_activation(activation, kernel):
    ffn = trees(2, 5, activation)
    check(kernel, ffn, layer(ffn, 40, 16))


@pytest.mark.skipif("triton" not in KERNELS, reason="in the interpreter, or on a GPU")
@pytest.mark.parametrize("shape", [(2, 6, 130, 16), (4, 7, 70, 40), (2, 8, 40, 16)], ids=str)
def test_triton_takes_two_trees_together_where_there_are_many_tokens(shape, monkeypatch):
    from sparsity_moves.kernels.triton import subtrees

    monkeypatch.setattr(subtrees, "MANY", 0)
    number, depth, tokens, d_model = shape
    assert subtrees.cut(number, depth, tokens).band == 2
    ffn = trees(number, depth)
    check("triton", ffn, layer(ffn, tokens, d_model))


def tied(ffn: FeedForward):
    """Small integers: their sums are exact in every type, and many responses are zero."""
    source = generator(1, "ties")
    x, w_in, b_in = (
        torch.randint(-1, 2, s, generator=source).float() for s in ((90, 6), (ffn.width, 6), (ffn.width,))
    )
    assert float((x @ w_in.T + b_in == 0).float().mean()) > 0.1, "there are ties"
    w_in, x = (torch.nn.functional.pad(t, (0, ffn.width - 6)) for t in (w_in, x))
    return [x, w_in, b_in, torch.eye(ffn.width)]


@by_kernel
@pytest.mark.parametrize("depth", [3, 6])
def test_ties_go_left_everywhere(kernel, depth):
    """Paths and outputs are the same to the last bit."""
    ffn = trees(2, depth, "none")
    x, w_in, b_in, w_out = tied(ffn)
    function, device = KERNELS[kernel]
    (found,) = outcome(
        lambda *g: function(*g, depth, "none"), [x, w_in, b_in, w_out], device, gradients=False
    )
    p = {"w_in": w_in.T[None], "b_in": b_in[None]}
    on = by_path(ffn, hidden_units(ffn, p, "", x[None])[:, :, None]).gates[0, :, 0]
    responses = x @ w_in.T + b_in
    assert torch.equal(found, responses * on), "each unit's own column of the output is its response, or zero"


@by_kernel
@in_both_types
def test_gradients_at_ties_are_the_masked_forms(kernel, dtype, tolerance):
    ffn = trees(2, 5)
    check(kernel, ffn, tied(ffn), tolerance, dtype)


@by_kernel
@in_both_types
@pytest.mark.parametrize("bias", [100.0, -100.0])
def test_where_all_tokens_go_one_way(kernel, bias, dtype, tolerance):
    """All but one branch is dead: most subtrees have no token, and their weights no gradient."""
    ffn = trees(2, 6)
    x, w_in, _, w_out = layer(ffn, 50, 16)
    given = [x, w_in, torch.full((ffn.width,), bias), w_out]
    check(kernel, ffn, given, tolerance, dtype)
    if kernel != "walk" and dtype == torch.float32:
        function, device = KERNELS[kernel]
        d_w_out = outcome(lambda *g: function(*g, 6, "none"), given, device)[-1]
        assert int((d_w_out != 0).any(1).sum()) == ffn.open_blocks


@by_kernel
def test_no_token_at_all(kernel):
    _, device = KERNELS[kernel]
    function = gather if kernel == "gather" else forest
    given = [t.to(device).requires_grad_() for t in layer(trees(2, 6), 0, 16)]
    assert function(*given, 6, "gelu").shape == (0, 16)
    gradients = torch.autograd.grad(function(*given, 6, "gelu").sum(), given)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, given, strict=True))


@by_kernel
@pytest.mark.parametrize("shape", [(2, 3, 64, 32), (2, 6, 200, 64), (3, 6, 1, 32)], ids=str)
def test_in_bf16_the_paths_are_those_of_fp32(shape, kernel):
    """Of the same rounded weights: only sums of products are rounded in between."""
    number, depth, tokens, d_model = shape
    ffn = trees(number, depth)
    check(kernel, ffn, layer(ffn, tokens, d_model), 1e-2, torch.bfloat16)


@by_kernel
def test_the_same_bits_twice(kernel):
    ffn = trees(3, 6)
    given = layer(ffn, 150, 16)
    function, device = KERNELS[kernel]
    once, twice = (
        outcome(lambda *g: function(*g, 6, "gelu"), given, device, gradients=kernel != "walk")
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


# --- The whole layer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 3, 40, 200])
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("always_on", [0, 5])
@pytest.mark.parametrize("nonlinearity", ["node", "sum", "tree"])
def test_a_layer_with_every_option(nonlinearity, always_on, learns, tokens):
    ffn = trees(3, 4, "silu", always_on=always_on, nonlinearity=nonlinearity)
    given = layer(ffn, tokens, 16)
    found, expected = (
        outcome(lambda *g, f=f: f(ffn, *g), given, DEVICE, gradients=learns) for f in (tree_layer, masked)
    )
    assert_close(found, expected)


# --- Mixed precision ------------------------------------------------------------------------------------------------


def test_under_autocast_a_forest_is_that_of_the_cast_numbers():
    ffn = trees(4, 3)
    given = [t.to(DEVICE).requires_grad_() for t in layer(ffn, 33, 16)]
    with torch.autocast(DEVICE, torch.bfloat16):
        found = forest(*given, ffn.tree_depth, ffn.activation)
    cast = [t.detach().bfloat16().requires_grad_() for t in given]
    expected = forest(*cast, ffn.tree_depth, ffn.activation)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    (found.float() ** 2).sum().backward()
    (expected.float() ** 2).sum().backward()
    for own, other in zip(given, cast, strict=True):
        assert own.grad.dtype == torch.float32
        assert torch.equal(own.grad, other.grad.float())


# --- The floor ------------------------------------------------------------------------------------------------------


def test_the_floor_of_a_forest_is_counted():
    ffn = trees(32, 7)
    assert ffn.width == 8160
    found = floor(ffn, 16_384, 2048, 2)
    assert found.flops == 4 * 16_384 * 2048 * 256
    assert found.bytes == 2 * (2 * 16_384 * 2048 + 2 * 8160 * 2048)
    one = floor(ffn, 1, 2048, 4)
    assert one.bytes == 4 * (2 * 2048 + 2 * 256 * 2048), "one token touches its path alone"
    both = floor(ffn, 16_384, 2048, 2, backward=True)
    assert both.flops == 3 * found.flops
    assert both.bytes > 2 * found.bytes
    dense = floor(FeedForward(8192), 16_384, 2048, 2)
    assert dense.flops == 4 * 16_384 * 2048 * 8192
    assert dense.seconds(1e12, 1e12) == dense.flops / 1e12
    assert one.seconds(1e15, 1e10) == one.bytes / 1e10


def test_the_floor_counts_rows_that_tokens_do_touch():
    """Where paths are shared fewer rows are touched than there could be."""
    ffn = trees(1, 5)
    x, w_in, b_in, _ = layer(ffn, 10, 8)
    p = {"w_in": w_in.T[None], "b_in": b_in[None]}
    chosen = by_path(ffn, hidden_units(ffn, p, "", x[None])[:, :, None]).chosen
    touched = int((chosen.sum((0, 1, 2)) > 0).sum())
    assert touched < min(63, 60)
    assert floor(ffn, 10, 8, 4, touched=touched).bytes == 4 * (2 * 10 * 8 + 2 * touched * 8)
