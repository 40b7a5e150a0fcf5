"""The GPU's kernels compute what the reference computes. Without a GPU, Triton's interpreter runs them.

The interpreter is chosen when Triton is imported, so these tests run in a process of their own there.
"""

import math
import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu" and not INTERPRETED:

    def test_in_the_interpreter():
        pytest.importorskip("triton", reason="Triton is there on Linux only")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", __file__],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert " passed" in done.stdout

else:
    import torch.nn.functional as F
    import triton
    import triton.language as tl

    from sparsity_moves.kernels import triton as kernels
    from sparsity_moves.kernels.precision import products
    from sparsity_moves.kernels.triton import grouped
    from sparsity_moves.kernels.triton.routing import same_for_all
    from sparsity_moves.model import REFERENCE, forward, stack
    from sparsity_moves.model.attention import attend_by_table, rows
    from sparsity_moves.model.feedforward import combine, hidden_units
    from sparsity_moves.model.routing import Routing, balance_loss, by_score
    from sparsity_moves.studies import ARMS, arm
    from sparsity_moves.tasks import generator, stacked

    LINEAR = sys.modules["sparsity_moves.kernels.triton.linear"]  # its function has the same name
    FEW = ARMS if DEVICE == "cuda" else ("dense", "glu", "moe", "moe_switch", "moe_top2", "moe_hash_context")
    CASES = [
        *((name, "add7", {}) for name in ARMS),
        *((name, task, {}) for task in ("modular_addition", "histogram") for name in FEW),
        ("dense", "add7", {"depth": 2}),
        ("moe", "histogram", {"depth": 3, "norm": "rms"}),
        ("moe_switch", "add7", {"depth": 2, "balance_positions": "read_out"}),
        ("moe", "add7", {"norm": "rms", "experts": 16}),
        ("moe_top2", "modular_addition", {"activation": "relu"}),
        ("glu", "modular_addition", {"activation": "silu"}),
        ("moe_top2", "add7", {"gate": "switch", "experts": 8}),
        ("moe", "add7", {"digits": 3, "d_model": 64}),
        ("dense", "histogram", {"symbols": 10, "alphabet": 12, "d_model": 128}),
        ("tree", "histogram", {"tree_depth": 1, "activation": "gelu"}),
        ("tree", "add7", {"tree_depth": 5, "depth": 2, "norm": "rms"}),
        ("tree_balanced", "modular_addition", {"tree_depth": 4}),
    ]

    if INTERPRETED:
        import interpreter  # noqa: F401

    def close(found, expected, what, within=2e-5):
        found, expected = found.detach(), expected.detach()
        scale = float(expected.abs().max()) + 1e-30
        assert float((found - expected).abs().max()) / scale < within, what

    @pytest.mark.parametrize(
        ("name", "task", "more"),
        CASES,
        ids=lambda x: "-".join(map(str, x.items())) if isinstance(x, dict) else x,
    )
    def test_logits_balance_and_gradients_are_the_references(name, task, more):
        spec = arm(name, "smoke", task, 0, **more)
        architecture, models = spec.architecture, 3
        start = stack([architecture.initialise(seed) for seed in range(models)])
        p = {n: t.to(DEVICE).requires_grad_(t.is_floating_point()) for n, t in start.items()}
        floats = [t for t in p.values() if t.is_floating_point()]
        inputs = stacked([spec.task_object.evaluation(s, 21) for s in range(models)])
        tokens = inputs.tokens[:, -21:].to(DEVICE)
        everywhere = tuple(range(spec.task_object.length))
        positions = () if not spec.balance_weight else everywhere
        if spec.balance_positions == "read_out":
            positions = spec.task_object.read_out
        found = []
        for which in (REFERENCE, kernels.KERNELS):
            trace = forward(architecture, p, tokens, balance_positions=positions, kernels=which)
            weight = torch.linspace(-1, 1, trace.logits.numel(), device=DEVICE).view_as(trace.logits)
            loss = (trace.logits * weight).sum() + 3 * trace.balance.sum()
            gradients = torch.autograd.grad(loss, floats, allow_unused=True, materialize_grads=True)
            found.append(
                {"logits": trace.logits, "balance": trace.balance, **dict(zip(p, gradients, strict=False))}
            )
        for what, expected in found[0].items():
            close(found[1][what], expected, what)

    @pytest.mark.parametrize(
        ("name", "more"),
        [
            *((name, {}) for name in (ARMS if DEVICE == "cuda" else ("dense", "moe_switch", "moe_top2"))),
            ("moe_frozen", {"norm": "rms"}),
            ("moe", {"depth": 2}),
            ("moe_switch", {"balance_positions": "read_out"}),
            ("moe", {"experts": 3, "width": 48}),
            ("dense", {"heads": 3, "d_model": 48}),
            ("tree", {"tree_depth": 2}),
        ],
        ids=lambda x: "-".join(map(str, x.items())) if isinstance(x, dict) else x,
    )
    def test_on_sequences_that_never_change_they_are_the_references_too(name, more):
        """Some tokens never stand at a position, some more often than a chunk holds, and the last always."""
        spec = arm(name, "smoke", "modular_addition", 0, **more)
        architecture, models = spec.architecture, 2
        start = stack([architecture.initialise(seed) for seed in range(models)])
        p = {n: t.to(DEVICE).requires_grad_(t.is_floating_point()) for n, t in start.items()}
        floats = [t for t in p.values() if t.is_floating_point()]
        tokens = torch.randint(5, (models, 160, 3), generator=generator(2, "sequences")).to(DEVICE)
        tokens[:, :, 2] = 7
        tokens[0, 60:, 1] = 3
        positions = () if not spec.balance_weight else (0, 1, 2)
        if spec.balance_positions == "read_out":
            positions = (2,)
        found = []
        for which in (REFERENCE, kernels.fixed(tokens, spec.task_object.vocabulary)):
            trace = forward(architecture, p, tokens, balance_positions=positions, kernels=which)
            weight = torch.linspace(-1, 1, trace.logits.numel(), device=DEVICE).view_as(trace.logits)
            loss = (trace.logits * weight).sum() + 30 * trace.balance.sum()
            gradients = torch.autograd.grad(loss, floats, allow_unused=True, materialize_grads=True)
            found.append(
                {"logits": trace.logits, "balance": trace.balance, **dict(zip(p, gradients, strict=False))}
            )
        for what, expected in found[0].items():
            close(found[1][what], expected, what)

    @pytest.mark.parametrize("size", [1.0, 1e-12])
    @pytest.mark.parametrize(
        ("name", "more"),
        [
            ("dense", {}),
            ("glu", {"activation": "gelu"}),
            ("moe", {}),
            ("moe_glu", {"gate": "switch"}),
            ("moe_top2", {"experts": 8}),
            ("dense", {"norm": "rms", "activation": "relu"}),
            ("moe_switch", {"d_model": 256, "width": 96}),
        ],
        ids=lambda x: "-".join(map(str, x.items())) if isinstance(x, dict) else str(x),
    )
    def test_where_products_round_to_ten_bits_they_are_the_references_to_that_many(name, more, size):
        """Gradients of any size: fp16 by itself has none below 6e-8."""
        spec = arm(name, "smoke", "modular_addition", 0, **more)
        architecture, models = spec.architecture, 2
        start = stack([architecture.initialise(seed) for seed in range(models)])
        p = {n: t.to(DEVICE).requires_grad_(t.is_floating_point()) for n, t in start.items()}
        floats = [t for t in p.values() if t.is_floating_point()]
        tokens = torch.randint(7, (models, 150, 3), generator=generator(2, "sequences")).to(DEVICE)
        # What is far apart in size within a chunk, and from chunk to chunk, as answers that are right or wrong.
        weight = 10 ** torch.rand(models, 150, 1, 1, generator=generator(3, "sizes")).mul(-6).to(DEVICE)
        found = []
        for which, rounding in ((REFERENCE, "fp32"), (kernels.KERNELS, "tf32")):
            with products(rounding):
                trace = forward(architecture, p, tokens, kernels=which)
                loss = (trace.logits * weight * size).sum()
                gradients = torch.autograd.grad(loss, floats, allow_unused=True, materialize_grads=True)
            found.append({"logits": trace.logits, **dict(zip(p, gradients, strict=False))})
        for what, expected in found[0].items():
            close(found[1][what], expected, what, within=4e-3)

    @triton.jit
    def bend(x, y, slope, N: tl.constexpr):
        i = tl.arange(0, N)
        found, steep = grouped._bent(tl.load(x + i), 3, True)
        tl.store(y + i, found)
        tl.store(slope + i, steep)

    def test_gelu_and_its_slope_by_a_polynomial():
        """Where it bends, and far out, where nothing or all is let through."""
        x = torch.cat([torch.linspace(-6, 6, 2_000), torch.logspace(0, 6, 24), -torch.logspace(0, 6, 24)]).to(
            DEVICE
        )
        y, slope = torch.empty_like(x), torch.empty_like(x)
        bend[(1,)](x, y, slope, N=2_048)
        exact = x.double().requires_grad_()
        expected = F.gelu(exact)
        (steep,) = torch.autograd.grad(expected.sum(), exact)
        far = exact.abs() > 5
        assert ((y - expected).abs() / exact.abs().clamp(min=1)).max() < 2e-6
        assert (slope - steep).abs().max() < 3e-6
        assert ((y - expected).abs() / exact.abs())[far].max() < 3e-7

    @pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
    @pytest.mark.parametrize(
        ("name", "more"),
        [
            ("dense", {"width": 160}),
            ("glu", {"width": 160}),
            ("moe", {}),
            ("moe_glu", {"gate": "switch"}),
            ("moe_top2", {"experts": 8}),
        ],
        ids=lambda x: "-".join(map(str, x.items())) if isinstance(x, dict) else x,
    )
    def test_what_fp16_cannot_hold_is_held(name, more, added):
        """Hidden units and gradients past 65,504, as in a GLU's spikes, and a chunk of gradients next to nothing, as
        where every answer is sure: neither becomes infinite or no number, nor spoils what stands beside it."""
        spec = arm(name, "smoke", "modular_addition", 0, **more)
        ffn, models = spec.architecture.ffn, 2
        start = stack([spec.architecture.initialise(seed) for seed in range(models)])
        # Where nothing bends: a rounded number on the other side of a kink would be another test.
        p = {n: t for n, t in start.items() if ".ffn." in n}
        along = torch.logspace(0, 1, spec.width)  # from one slice of the units to the next
        p["0.ffn.w_out"] = p["0.ffn.w_out"] * 1e3 * along[:, None]
        if ffn.gated:
            p["0.ffn.w_up"] = p["0.ffn.w_up"] * 1e4 * along
        else:
            p["0.ffn.b_in"] = p["0.ffn.b_in"] + 2e4 * along
        p = {n: t.to(DEVICE).requires_grad_() for n, t in p.items()}
        x = torch.randn(models, 150, 1, spec.d_model, generator=generator(2, "stream")).mul(9)
        x[:, 70:] /= 1e3
        x = x.to(DEVICE).requires_grad_()
        weight = torch.randn(models, 150, spec.d_model, generator=generator(3, "sizes")).to(DEVICE)
        weight[:, 80:] *= 1e-38
        routing = by_score(ffn, p["0.ffn.router"], x.detach()) if ffn.router == "learned" else None
        before = hidden_units(ffn, p, "0.ffn.", x.flatten(1, 2))
        assert before[:, :64].abs().max() > 65_504
        assert (weight[:, :64] * 32 / weight.abs().max() @ p["0.ffn.w_out"].mT).abs().max() > 65_504
        names = [n for n in p if not n.endswith("router")]
        gates = None if routing is None else routing.gates.flatten(1, 2)
        expected = combine(ffn, p, "0.ffn.", before, gates) + (x.flatten(1, 2) if added else 0)
        with products("tf32"):
            found = kernels.KERNELS.feed_forward(ffn, p, "0.ffn.", x.flatten(1, 2), routing, added)
            close(found, expected, "output", within=4e-3)
            floats = [x, *(p[n] for n in names)]
            got, wanted = (torch.autograd.grad((y * weight).sum(), floats) for y in (found, expected))
        for what, ours, theirs in zip(("x", *names), got, wanted, strict=True):
            close(ours, theirs, what, within=4e-3)

    @pytest.mark.parametrize(
        ("name", "rounding", "within"),
        [("dense", "tf32", 4e-3), ("glu", "tf32", 4e-3), ("moe", "fp32", 2e-5), ("moe_top2", "tf32", 4e-3)],
    )
    def test_a_matrixs_gradient_is_summed_in_parts_over_many_tokens(name, rounding, within):
        """Most of them of one expert, and one expert open to none."""
        spec = arm(name, "smoke", "modular_addition", 0, activation="none")
        ffn = spec.architecture.ffn
        start = spec.architecture.initialise(0)
        p = {n: t[None].to(DEVICE).requires_grad_() for n, t in start.items() if ".ffn." in n}
        source = generator(4, "long")
        x = torch.randn(1, 1_300, 1, spec.d_model, generator=source).to(DEVICE).requires_grad_()
        weight = torch.randn(1, 1_300, spec.d_model, generator=source).to(DEVICE)
        names, routing, gates = [n for n in p if not n.endswith("router")], None, None
        if ffn.router == "learned":
            score = torch.randn(1, 1_300, 1, ffn.experts, generator=source)
            score[..., 0] += 3
            score[..., -1] -= 50
            chosen = (
                torch.zeros_like(score).scatter(-1, score.topk(ffn.top_k, dim=-1).indices, 1.0).to(DEVICE)
            )
            gates = chosen / ffn.top_k
            routing = Routing(gates, chosen, None)
            gates = gates.flatten(1, 2)
        expected = combine(ffn, p, "0.ffn.", hidden_units(ffn, p, "0.ffn.", x.flatten(1, 2)), gates)
        with products(rounding):
            found = kernels.KERNELS.feed_forward(ffn, p, "0.ffn.", x.flatten(1, 2), routing, False)
            floats = [x, *(p[n] for n in names)]
            got, wanted = (torch.autograd.grad((y * weight).sum(), floats) for y in (found, expected))
        close(found, expected, "output", within)
        for what, ours, theirs in zip(("x", *names), got, wanted, strict=True):
            close(ours, theirs, what, within)

    def test_more_sequences_of_one_pair_than_a_program_holds():
        spec = arm("moe", "smoke", "modular_addition", 0)
        p = {n: t[None].to(DEVICE).requires_grad_() for n, t in spec.architecture.initialise(0).items()}
        tokens = torch.randint(5, (1, 2_500, 3), generator=generator(5, "sequences")).to(DEVICE)
        tokens[:, :, 1], tokens[:, :, 2] = 3, 7
        got, wanted = (
            torch.autograd.grad(
                (forward(spec.architecture, p, tokens, kernels=which).logits ** 2).mean(),
                [p["embed"], p["position"], p["0.attention.qkv"]],
            )
            for which in (kernels.fixed(tokens, spec.task_object.vocabulary), REFERENCE)
        )
        for what, ours, theirs in zip(("embed", "position", "qkv"), got, wanted, strict=True):
            close(ours, theirs, what)

    @pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
    @pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
    @pytest.mark.parametrize(
        ("inputs", "outputs"), [(16, 16), (32, 32), (64, 64), (128, 128), (40, 24), (256, 256)]
    )
    def test_a_linear_map_onto_a_stream(inputs, outputs, biased, added, monkeypatch):
        """Ten bits, and fp32's; chunks that are full and one that is not; gradients of any size, and a program that
        sums those of one chunk or of several."""
        source = generator(0, "linear")
        x = torch.randn(2, 150, inputs, generator=source).to(DEVICE).requires_grad_()
        weight = torch.randn(2, inputs, outputs, generator=source).to(DEVICE).requires_grad_()
        bias = torch.randn(2, outputs, generator=source).to(DEVICE).requires_grad_() if biased else None
        onto = torch.randn(2, 150, outputs, generator=source).to(DEVICE).requires_grad_() if added else None
        upstream = torch.randn(2, 150, outputs, generator=source).to(DEVICE) * 1e-9
        upstream[:, 60:] *= 1e-5
        given = [t for t in (x, weight, bias, onto) if t is not None]
        expected = x @ weight + (0 if bias is None else bias[:, None]) + (0 if onto is None else onto)
        wanted = torch.autograd.grad(expected, given, upstream)
        for rounding, programs, within in (("fp32", 264, 2e-6), ("tf32", 264, 4e-3), ("tf32", 1, 4e-3)):
            monkeypatch.setattr(LINEAR, "PROGRAMS", programs)
            with products(rounding):
                found = kernels.KERNELS.linear(x, weight, bias, onto)
                got = torch.autograd.grad(found, given, upstream)
            close(found, expected, "output", within)
            for ours, theirs in zip(got, wanted, strict=True):
                close(ours, theirs, "gradient", within)
            close(got[0][:, 70:], wanted[0][:, 70:], "gradient where it is small", within)

    @pytest.mark.parametrize("sure", [1.0, 8.0], ids=["unsure", "sure"])
    @pytest.mark.parametrize(("rounding", "within"), [("fp32", 2e-5), ("tf32", 4e-3)], ids=["fp32", "tf32"])
    @pytest.mark.parametrize(("width", "classes"), [(32, 12), (64, 10), (128, 114), (40, 7), (256, 114)])
    def test_cross_entropy_and_its_gradients(width, classes, rounding, within, sure):
        """Answers that are sure have gradients next to nothing."""
        source = generator(0, "entropy")
        x = torch.randn(3, 7, 15, width, generator=source).to(DEVICE).requires_grad_()
        unembed = (
            torch.randn(3, width, classes, generator=source).mul(width**-0.5).to(DEVICE).requires_grad_()
        )
        targets = torch.randint(classes, (3, 7, 15), generator=source).to(DEVICE)
        with torch.no_grad():
            right = unembed.mT.gather(1, targets.flatten(1)[..., None].expand(-1, -1, width))
            x += (sure - 1) * right.view_as(x)
        weight = torch.rand(3, 7, 15, generator=source).to(DEVICE)
        logits = (x.flatten(1, 2) @ unembed).flatten(0, 1)
        expected = F.cross_entropy(logits, targets.flatten(), reduction="none").view(3, 7, 15)
        wanted = torch.autograd.grad((expected * weight).sum(), (x, unembed))
        with products(rounding):
            found = kernels.cross_entropy(x, unembed, targets)
            got = torch.autograd.grad((found * weight).sum(), (x, unembed))
        close(found, expected, "loss", within)
        for what, ours, theirs in zip(("x", "unembed"), got, wanted, strict=True):
            close(ours, theirs, what, within)

    @pytest.mark.parametrize("programs", [1, 264], ids=["one", "many"])
    @pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
    @pytest.mark.parametrize(("width", "classes"), [(32, 12), (40, 7), (128, 114), (16, 128)])
    def test_cross_entropy_in_ten_bits_has_gradients_of_any_size(width, classes, size, programs, monkeypatch):
        """They differ from token to token and from block to block of them; a program takes one block or several."""
        monkeypatch.setattr(LINEAR, "PROGRAMS", programs)
        source = generator(1, "entropy")
        x = torch.randn(2, 150, 2, width, generator=source).to(DEVICE).requires_grad_()
        unembed = (
            torch.randn(2, width, classes, generator=source).mul(width**-0.5).to(DEVICE).requires_grad_()
        )
        targets = torch.randint(classes, (2, 2, 150), generator=source).to(DEVICE).transpose(1, 2)
        upstream = 10 ** torch.rand(2, 150, 2, generator=source).mul(-6).to(DEVICE) * size
        upstream[:, 40:80] *= 1e-5
        upstream[:, 120:] = 0
        logits = (x.flatten(1, 2) @ unembed).flatten(0, 1)
        expected = F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)
        wanted = torch.autograd.grad(expected, (x, unembed), upstream)
        with products("tf32"):
            found = kernels.cross_entropy(x, unembed, targets)
            got = torch.autograd.grad(found, (x, unembed), upstream)
        close(found, expected, "loss", 4e-3)
        for what, ours, theirs in zip(("x", "unembed"), got, wanted, strict=True):
            close(ours, theirs, what, 4e-3)
        close(got[0][:, 35:75], wanted[0][:, 35:75], "x where gradients are small", 4e-3)
        assert not got[0][:, 120:].any()

    @pytest.mark.parametrize("rounding", ["fp32", "tf32"])
    def test_a_sure_answer_has_the_gradient_that_is_left(rounding):
        """Though the logits are so large that their own last bit is a good part of it."""
        x = torch.zeros(1, 3, 1, 16)
        x[..., 0] = 64
        unembed = torch.zeros(1, 16, 12)
        unembed[0, 0, :2] = torch.tensor([64, 64 - 4 / 64])
        x, unembed = x.to(DEVICE), unembed.to(DEVICE).requires_grad_()
        targets = torch.zeros(1, 3, 1, dtype=torch.long, device=DEVICE)
        with products(rounding):
            found = kernels.cross_entropy(x, unembed, targets)
            (got,) = torch.autograd.grad(found.sum(), unembed)
        wanted = torch.zeros_like(got)
        wanted[0, 0, :2] = torch.tensor([-1, 1]) * 3 * 64 / (1 + math.exp(4))
        close(found, torch.full_like(found, math.log1p(math.exp(-4))), "loss", 0.02)
        close(got, wanted, "gradient", 1e-3)

    def test_a_token_that_is_no_number_has_no_loss():
        """Others stand beside it in the same product, and keep theirs to the bit."""
        source = generator(2, "entropy")
        x, unembed = torch.randn(2, 70, 1, 32, generator=source), torch.randn(2, 32, 12, generator=source)
        targets = torch.randint(12, (2, 70, 1), generator=source).to(DEVICE)
        x, unembed = x.to(DEVICE), unembed.to(DEVICE)
        with products("tf32"):
            whole = kernels.cross_entropy(x, unembed, targets)
            x[0, 5, 0, 3] = float("nan")
            found = kernels.cross_entropy(x, unembed, targets)
        assert torch.isnan(found[0, 5, 0])
        assert int((found != whole).sum()) == 1

    @pytest.mark.parametrize("positions", [(0, 1, 2), (1, 2), (2,)])
    def test_a_lookups_gradient_sums_over_all_who_looked(positions):
        """Long enough that several programs share a sum, and a row that nobody looks up has none."""
        source = generator(1, "lookup")
        table = torch.randn(2, 3 * 7, 40, generator=source).to(DEVICE).requires_grad_()
        tokens = torch.randint(6, (2, 1500, 3), generator=source)
        index = (tokens + 7 * torch.arange(3)).to(DEVICE)
        weight = torch.randn(2, 1500, len(positions), 40, generator=source).to(DEVICE)
        found = kernels.lookup(table, index, positions)
        expected = rows(table, index[:, :, list(positions)])
        assert torch.equal(found, expected)
        got, wanted = (torch.autograd.grad((x * weight).sum(), table)[0] for x in (found, expected))
        close(got, wanted, "gradient")
        assert not got[:, 6::7].any()

    @pytest.mark.parametrize("name", ["moe", "moe_switch", "moe_glu", "moe_top2"])
    def test_a_model_that_has_diverged_says_so(name):
        """A router whose scores are no number must not leave a token without an expert: on a GPU its output would
        then be whatever stood in memory, and the loss look sound. The other model is as it was."""
        spec = arm(name, "smoke", "modular_addition", 0, experts=4)
        p = {n: t.to(DEVICE) for n, t in stack([spec.architecture.initialise(s) for s in range(2)]).items()}
        tokens = torch.randint(7, (2, 150, 3), generator=generator(6, "sequences")).to(DEVICE)

        def logits():
            return forward(spec.architecture, p, tokens, kernels=kernels.KERNELS).logits

        whole = logits()
        p["embed"][0, 2] = float("nan")  # of one number
        found = logits()
        met = (tokens[0] == 2).any(1)
        assert torch.isnan(found[0][met]).all()
        close(found[0][~met], whole[0][~met], "sequences without it")  # other tokens stand beside theirs
        assert torch.equal(found[1], whole[1])

    @pytest.mark.parametrize("name", ["moe", "moe_switch", "moe_top2"])
    @pytest.mark.parametrize("positions", [1, 3])
    def test_a_balance_losss_gradient_is_one_row_a_model_and_gives_what_it_would_written_out(name, positions):
        spec = arm(name, "smoke", "modular_addition", 0)
        ffn, held, source = spec.architecture.ffn, tuple(range(positions)), generator(7, "balance")
        router = torch.randn(2, spec.d_model, ffn.experts, generator=source).to(DEVICE).requires_grad_()
        x = torch.randn(2, 50, positions, spec.d_model, generator=source).to(DEVICE).requires_grad_()
        d_gates = torch.randn(2, 50, positions, ffn.experts, generator=source).to(DEVICE)
        routing, _ = kernels.route(ffn, router, x, held, held)
        loss = balance_loss(ffn, routing)
        weight = torch.tensor([1.0, -2.0], device=DEVICE)
        (even,) = torch.autograd.grad(loss, routing.probabilities, weight, retain_graph=True)
        written = even.contiguous()
        assert [same_for_all(d)[1] for d in (even, written)] == [True, False]
        given = [t for t in (routing.probabilities, routing.gates) if t.requires_grad]
        ours, theirs = (
            torch.autograd.grad(given, [x, router], [d, d_gates][: len(given)], retain_graph=True)
            for d in (even, written)
        )
        assert all(map(torch.equal, ours, theirs))

    @pytest.mark.parametrize("causal", [False, True], ids=["seeing all", "causal"])
    @pytest.mark.parametrize("positions", [(0, 1), (1,), (0, 1, 2)])
    def test_a_glance_is_what_a_router_would_make_of_the_stream_there(positions, causal):
        """Its probabilities, its choices and all its gradients, written out or not."""
        spec = arm("moe_top2", "smoke", "modular_addition", 0)
        ffn, heads, source = spec.architecture.ffn, spec.architecture.heads, generator(8, "glance")
        tokens = torch.randint(9, (2, 150, 3), generator=source).to(DEVICE)
        index = tokens + 11 * torch.arange(3, device=DEVICE)
        shapes = ((33, 3 * spec.d_model), (33, ffn.experts), (spec.d_model, ffn.experts))
        given = [torch.randn(2, *s, generator=source).to(DEVICE).requires_grad_() for s in shapes]
        asking = index[:, :, list(positions)]
        mixed, _ = attend_by_table(given[0], heads, asking, index, causal)
        expected = (
            rows(given[1], asking)
            + torch.einsum("mbphk,mhke->mbpe", mixed, given[2].unflatten(1, (heads, -1)))
        ).softmax(-1)
        glance = kernels.fixed(tokens, 11).glance
        found, chosen = glance(*given, index, positions=positions, heads=heads, causal=causal, top_k=2)
        close(found, expected, "probabilities")
        assert torch.equal(chosen, torch.zeros_like(found).scatter(-1, found.topk(2).indices, 1.0))
        row = torch.randn(2, 1, 1, ffn.experts, generator=source).to(DEVICE)
        for upstream in (row.expand_as(found), row * found.detach()):
            got, wanted = (
                torch.autograd.grad(y, given, upstream, retain_graph=True) for y in (found, expected)
            )
            for what, ours, theirs in zip(("projected", "own", "reading"), got, wanted, strict=True):
                close(ours, theirs, what)

    def test_of_equal_scores_the_first_expert_is_taken():
        spec = arm("moe_top2", "smoke", "add7", 0)
        router, x = torch.zeros(1, 32, 4, device=DEVICE), torch.ones(1, 2, 3, 32, device=DEVICE)
        routing, answering = kernels.route(spec.architecture.ffn, router, x, (1, 2), (0, 1, 2))
        assert torch.equal(routing.chosen, torch.tensor([1.0, 1, 0, 0], device=DEVICE).expand(1, 2, 3, 4))
        assert torch.equal(routing.gates, routing.chosen / 2)
        assert torch.equal(answering, x[:, :, 1:])
