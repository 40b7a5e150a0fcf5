"""Training on a GPU: the same bits twice, whoever trains beside, and the CPU's losses up to rounding."""

import threading
from dataclasses import replace

import pytest
import torch

from sparsity_moves.kernels.precision import products
from sparsity_moves.model import Architecture
from sparsity_moves.model.feedforward import combine, hidden_units
from sparsity_moves.model.routing import Routing
from sparsity_moves.model.tree import by_path
from sparsity_moves.studies import arm, every
from sparsity_moves.tasks import TASKS, generator
from sparsity_moves.training import Fleet, data, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

CASES = [
    *(
        (name, "modular_addition", {})
        for name in ("dense", "moe", "moe_switch", "moe_top2", "moe_glu", "moe_hash")
    ),
    *((name, "histogram", {"pool": 2_000}) for name in ("dense", "moe", "moe_switch")),
    *((name, "add7", {}) for name in ("dense", "moe", "moe_top2", "moe_glu", "moe_active")),
    ("moe", "add7", {"depth": 2, "norm": "rms"}),
    ("dense", "add7", {"dropout": 0.1}),
]
STEPS = 60


def specs(name, task, more, models=4):
    """Paper's sizes, for a few steps."""
    return [
        arm(name, "paper", task, seed, **(more | {"steps": STEPS, "evaluate_every": 20}))
        for seed in range(models)
    ]


def trained(of, device="cuda", steps=STEPS):
    """Every loss, and the parameters after the last step."""
    fleet = Fleet(of, device)
    losses = []
    for _, batch in zip(range(steps), data.batches(of, fleet.device), strict=False):
        losses.append(fleet.step(*batch).clone())
    return torch.stack(losses).cpu(), fleet.flat.detach().cpu()


@pytest.mark.parametrize(
    ("name", "task", "more"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x)
)
class TestEveryArm:
    def test_the_same_program_gives_the_same_bits_twice(self, name, task, more):
        of = specs(name, task, more)
        first, second = trained(of), trained(of)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])

    def test_fleets_side_by_side_give_the_same_bits_as_one_alone(self, name, task, more):
        of = specs(name, task, more)
        alone = trained(of)
        found = {}

        def beside(number):
            with torch.cuda.stream(torch.cuda.Stream()):
                found[number] = trained(of)

        threads = [threading.Thread(target=beside, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(3):
            assert torch.equal(found[number][0], alone[0])
            assert torch.equal(found[number][1], alone[1])

    def test_the_losses_are_the_cpus(self, name, task, more):
        of = [replace(spec, precision="fp32") for spec in specs(name, task, more, models=2)]
        here, there = (trained(of, device, steps=4)[0] for device in ("cuda", "cpu"))
        torch.testing.assert_close(here, there, rtol=2e-4, atol=2e-4)

    def test_a_models_result_hardly_depends_on_its_neighbours(self, name, task, more):
        """Products round by their shape, so bits differ; what a router's choice makes of that is bounded here."""
        of = [replace(spec, precision="fp32") for spec in specs(name, task, more)]
        alone, beside = trained(of[:1], steps=10)[0], trained(of, steps=10)[0][:, :1]
        torch.testing.assert_close(alone, beside, rtol=1e-3, atol=1e-3)

    def test_from_a_state_it_goes_on_as_if_never_interrupted(self, name, task, more):
        of = specs(name, task, more)
        states = []
        whole = train(of, "cuda", keep=states.append, keep_every=0.0)
        again = train(of, "cuda", start=states[0])
        for one, other in zip(whole, again, strict=True):
            assert one.curve == other.curve
            for moment, there in one.moments.items():
                for parameter, value in there.parameters.items():
                    assert torch.equal(value, other.moments[moment].parameters[parameter])


def layers():
    """Every FFN of the full-scale runs whose products round to ten bits, at its model's width."""
    specs = {spec.shape for study in every("paper") for spec in study.specs if spec.precision == "tf32"}
    return sorted({(spec.d_model, spec.architecture.ffn) for spec in specs}, key=repr)


@pytest.mark.parametrize(("width", "ffn"), layers() if torch.cuda.is_available() else [], ids=str)
def test_every_layer_of_the_full_scale_runs_is_the_masked_one_to_ten_bits(width, ffn):
    """With a routing that is given, so that nothing hangs on a near-tie; gradients of sizes far apart."""
    from sparsity_moves.kernels import triton  # which is not everywhere

    models, tokens = 2, 700
    source = generator(0, "layers")
    shapes = Architecture(TASKS["modular_addition"](7, 0.5), width, ffn=ffn).shapes()
    p = {
        name: (torch.randn(models, *shape, generator=source) / shape[0] ** 0.5).cuda().requires_grad_()
        for name, shape in shapes.items()
        if name.startswith("0.ffn.") and name != "0.ffn.router"
    }
    x = torch.randn(models, tokens, width, generator=source).cuda().requires_grad_()
    sizes = 10 ** torch.rand(models, tokens, 1, generator=source).mul(-6).sub(5).cuda()
    weight = torch.randn(models, tokens, width, generator=source).cuda() * sizes
    routing = None
    if ffn.experts > 1:
        scores = torch.randn(models, 1, tokens, ffn.experts, generator=source).cuda()
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(ffn.top_k).indices, 1.0)
        gates = chosen if ffn.plain_gates else chosen * scores.softmax(-1)
        routing = Routing(gates.requires_grad_(not ffn.plain_gates), chosen, None)
    found = []
    tree = ffn.router == "tree"
    # Where a response rounds decides a branch, and the side of a kink.
    within = 5e-2 if tree else 2e-2 if ffn.activation == "relu" else 2e-3
    for rounding, ours in (("tf32" if tree else "fp32", False), ("tf32", True)):
        with products(rounding):
            if ours:
                y = triton.feed_forward(ffn, p, "0.ffn.", x, routing, True)
            else:
                units = hidden_units(ffn, p, "0.ffn.", x)
                given = by_path(ffn, units[:, None], None) if tree else routing
                y = x + combine(ffn, p, "0.ffn.", units, None if given is None else given.gates.flatten(1, 2))
            wanted = [x, *p.values(), *([gates] if routing is not None and gates.requires_grad else [])]
            found.append([y, *torch.autograd.grad((y * weight).sum(), wanted)])
    for what, expected, got in zip(("y", "x", *p, "gates"), *found, strict=False):
        if what == "gates":  # a masked form has gradients of closed gates, too, which nobody reads
            expected, got = expected * chosen, got * chosen
        far = float((got - expected).norm() / expected.norm())
        assert far < within, (what, far)
