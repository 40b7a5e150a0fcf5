"""The trainer that the page carries (WebAssembly, from C), against the package's own model: the same gradients, the
same training, the same batches; and the same bits in every engine.

The reference for gradients is PyTorch in float64; for batches, mulberry32 written down a second time below.
"""

import dataclasses
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsity_moves import kernels
from sparsity_moves.errors import UserError
from sparsity_moves.model import Parameters, forward, tree
from sparsity_moves.studies import arm
from sparsity_moves.studies.arms import ARMS
from sparsity_moves.training import Spec, correct
from sparsity_moves.widgets.lab import build
from sparsity_moves.widgets.lab.host import NO_ATTENTION, NO_FFN, Host
from sparsity_moves.widgets.lab.recipes import spec_of as lab_spec_of

TASKS = ("add7", "modular_addition", "histogram")
HERE = [name for name in ARMS if name != "moe_hash_context"]
SEQUENCES = 64
GRADIENT, LOSS = 2e-6, 1e-4


def spec_of(name: str, task: str = "add7", **more: object) -> Spec:
    """An arm as the lab trains it: its balance loss is over the answers."""
    return arm(name, "laptop", task, 42, **{"balance_positions": "read_out", **more})


def differentiated(spec: Spec, parameters: Parameters, tokens: Tensor, targets: Tensor) -> tuple:
    """Cross-entropy and all gradients of the package's own model, in the parameters' own precision."""
    p = {
        n: t[None].clone().requires_grad_() if t.is_floating_point() else t[None]
        for n, t in parameters.items()
    }
    balanced = spec.architecture.task.read_out if spec.balance_weight else ()
    trace = forward(spec.architecture, p, tokens[None], balance_positions=balanced)
    entropy = kernels.cross_entropy(trace, targets[None]).mean()
    loss = entropy + spec.balance_weight * trace.balance.sum()
    names = spec.trained()
    found = torch.autograd.grad(loss, [p[n] for n in names], allow_unused=True, materialize_grads=True)
    return entropy.item(), {n: g[0] for n, g in zip(names, found, strict=True)}


def furthest(found: Parameters, right: Parameters) -> float:
    """The largest error of a tensor's gradient, relative to its norm.

    Gradients that cancel to nearly nothing (a hundredth of the whole) are taken relative to that.
    """
    whole = torch.cat([g.flatten() for g in right.values()]).norm()
    return max(
        float((found[n].double() - g).norm() / torch.maximum(g.norm(), whole / 100)) for n, g in right.items()
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", HERE)
def test_gradients_are_those_of_pytorch_in_double_precision(name: str, task: str) -> None:
    spec = spec_of(name, task)
    host = Host(spec)
    host.call("initialise", 1)
    start = spec.architecture.initialise(3)
    host.start_from(start)
    host.call("draw_batch", SEQUENCES)
    tokens, targets = host.batch(SEQUENCES)
    loss = host.differentiate(SEQUENCES)
    exact = {n: t.double() if t.is_floating_point() else t for n, t in start.items()}
    wanted, right = differentiated(spec, exact, tokens, targets)
    assert loss == pytest.approx(wanted, rel=GRADIENT)
    assert furthest(host.tensors("gradients"), right) < GRADIENT


@pytest.mark.parametrize("name", ["dense", "moe", "moe_switch", "moe_top2", "tree"])
@pytest.mark.parametrize("sequences", [SEQUENCES, SEQUENCES - 1])
def test_two_halves_are_the_whole(name: str, sequences: int) -> None:
    """Two trainers with half of a batch each, that tell each other their loads and gradients, have its gradients."""
    spec = spec_of(name, batch=sequences)
    whole, parted = Host(spec), Host(spec)
    for host in (whole, parted):
        host.call("initialise", 1)
    whole.call("draw_batch", sequences)
    right = whole.differentiate(sequences)
    assert parted.step(0.0) == pytest.approx(right, rel=GRADIENT)
    exact = {n: g.double() for n, g in whole.tensors("gradients").items()}
    assert furthest(parted.tensors("gradients"), exact) < GRADIENT


def test_halves_that_keep_their_loads_to_themselves_are_not() -> None:
    """Balance is of the whole batch: without the other half's loads the router's gradient is another."""
    spec = spec_of("moe", batch=SEQUENCES)
    host = Host(spec)
    host.call("initialise", 1)
    host.step(0.0)
    right = {n: g.double() for n, g in host.tensors("gradients").items()}
    found = []
    for which in (0, 1):
        half = Host(spec)
        half.call("initialise", 1)
        half.call("draw_batch", SEQUENCES)
        half.call("half_forward", which, SEQUENCES)
        half.call("half_backward", SEQUENCES, float(spec.balance_weight))
        found.append(half.tensors("gradients"))
    summed = {n: found[0][n] + found[1][n] for n in right}
    assert furthest(summed, right) > 100 * GRADIENT


def test_a_tree_counts_who_visits_its_nodes() -> None:
    spec = spec_of("tree")
    host = Host(spec)
    host.call("initialise", 1)
    host.evaluate()
    visits = torch.from_numpy(host.read("loads", host.blocks, np.int32)).long()
    p = {n: t[None] for n, t in host.tensors().items()}
    every = spec.task_object.evaluation(0, 0)
    trace = forward(spec.architecture, p, every.tokens[None])
    routing = trace.layers[0].routing
    assert routing is not None
    wanted = tree.visits(spec.architecture.ffn, routing.chosen).flatten()
    assert (visits - wanted).abs().sum() <= 1e-3 * wanted.sum()  # a unit near zero may fall to either side


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "none"])
def test_every_activation(activation: str) -> None:
    spec = spec_of("glu", activation=activation)
    host = Host(spec)
    host.call("initialise", 1)
    host.call("draw_batch", SEQUENCES)
    exact = {n: t.double() for n, t in host.tensors().items()}
    host.differentiate(SEQUENCES)
    _, right = differentiated(spec, exact, *host.batch(SEQUENCES))
    assert furthest(host.tensors("gradients"), right) < GRADIENT


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "name",
    ["dense", "glu", "moe", "moe_frozen", "moe_switch", "moe_top2", "moe_hash", "tree", "tree_balanced"],
)
def test_thirty_steps_lose_what_pytorch_loses(name: str, task: str) -> None:
    """From the same weights, on the batches that mulberry32 draws here and there; AdamW and clipping included."""
    spec = spec_of(name, task)
    host = Host(spec)
    host.call("initialise", 5)
    start = spec.architecture.initialise(5)
    host.start_from(start)
    draw = SAMPLERS[task](spec, 5)
    p = {n: t.clone() for n, t in start.items()}
    leaves = [p[n] for n in spec.trained()]
    adam = torch.optim.AdamW(leaves, lr=1e-3, betas=(spec.beta1, spec.beta2), weight_decay=spec.weight_decay)
    for _ in range(30):
        tokens, targets = (torch.tensor(x) for x in zip(*(draw() for _ in range(SEQUENCES)), strict=True))
        host.call("draw_batch", SEQUENCES)
        assert torch.equal(host.batch(SEQUENCES)[0], tokens)
        assert torch.equal(host.batch(SEQUENCES)[1], targets)
        theirs = host.differentiate(SEQUENCES)
        host.update(1e-3)
        ours, gradients = differentiated(spec, p, tokens, targets)
        for leaf, name_ in zip(leaves, spec.trained(), strict=True):
            leaf.grad = gradients[name_]
        if spec.clip:
            torch.nn.utils.clip_grad_norm_(leaves, spec.clip)
        adam.step()
        assert theirs == pytest.approx(ours, abs=LOSS)


@pytest.mark.parametrize("task", TASKS[:2])  # the histogram's sample is the trainer's own
@pytest.mark.parametrize("without", [0, NO_ATTENTION, NO_FFN])
def test_accuracy_is_what_the_package_counts(task: str, without: int) -> None:
    spec = spec_of("moe", task)
    host = Host(spec)
    host.call("initialise", 1)
    for _ in range(60):
        host.call("draw_batch", SEQUENCES)
        host.differentiate(SEQUENCES)
        host.update(3e-3)
    accuracy, exact, held = host.evaluate(without)
    assert (held is None) == (task == "add7")
    p = {n: t[None] for n, t in host.tensors().items()}
    edits = {}
    if without:
        edits = {"0.ffn" if without == NO_FFN else "0.attention": torch.zeros_like}
    sequences = spec.task_object.evaluation(42, 0)
    stacked = type(sequences)(
        sequences.tokens[None], sequences.targets[None], sequences.operations[None], None
    )
    right = correct(spec.architecture, p, stacked, edits)
    assert accuracy == pytest.approx(right.double().mean().item(), abs=2e-4)
    assert exact == pytest.approx(right.all(-1).double().mean().item(), abs=2e-4)


def test_a_start_is_drawn_as_pytorch_draws_it() -> None:
    host = Host(spec_of("moe"))
    host.call("initialise", 1)
    start = host.tensors()
    assert start["embed"].mean().abs() < 0.1
    assert start["embed"].std() == pytest.approx(1, abs=0.05)
    assert 0.99 / 8 < start["0.ffn.w_in"].abs().max() < 1 / 8  # fan-in 64
    assert start["0.ffn.w_out"].std() == pytest.approx(1 / 8 / 3**0.5, rel=0.02)  # an expert's fan-in is 64


def test_arms_of_one_seed_share_all_but_the_ffn() -> None:
    starts = []
    for name in ("dense", "moe_glu"):
        host = Host(spec_of(name))
        host.call("initialise", 9)
        starts.append(host.tensors())
    for name in ("embed", "position", "0.attention.qkv", "0.attention.out"):
        assert torch.equal(starts[0][name], starts[1][name])


def test_a_frozen_router_stays_and_a_learned_one_moves() -> None:
    moved = {}
    for name in ("moe", "moe_frozen"):
        host = Host(spec_of(name))
        host.call("initialise", 1)
        before = host.tensors()["0.ffn.router"].clone()
        host.call("draw_batch", SEQUENCES)
        host.differentiate(SEQUENCES)
        host.update(1e-2)
        moved[name] = not torch.equal(host.tensors()["0.ffn.router"], before)
    assert moved == {"moe": True, "moe_frozen": False}


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UserError):
        Host(spec_of("dense", norm="rms"))
    host = Host(spec_of("moe"))
    assert (
        host.call("setup", 0, 0, 0, 64, 4, 250, 4, 1, 1, 0, 0, 0, 0, 0, 64) == 0
    )  # 4 experts do not divide 250
    assert host.call("setup", 0, 0, 0, 64, 4, 256, 4, 5, 1, 0, 0, 0, 0, 0, 64) == 0  # 5 of 4


def test_the_shipped_trainer_is_the_committed_source_compiled(tmp_path) -> None:
    again = tmp_path / "trainer.wasm"
    build.build(again)

    def digest(path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert digest(again) == digest(build.WASM), "run `make wasm` and commit trainer.wasm"


NODE = """
const {readFileSync} = require("fs");
const module_ = new WebAssembly.Module(readFileSync(process.argv[1]));
const w = new WebAssembly.Instance(module_, {}).exports;
const count = w.setup(0, 0, 0, 64, 4, 256, 4, 2, 1, 1, 0, 2, 0, 0, 128);
w.initialise(7);
for (let i = 0; i < 40; i++) { w.draw_batch(128); w.differentiate(128, 0.01); w.update(2e-3, 0.01, 0.9, 0.99, 1); }
const bytes = new Uint8Array(w.memory.buffer, w.parameter_values(), 4 * count);
console.log(JSON.stringify([require("crypto").createHash("sha256").update(bytes).digest("hex"),
    new Float32Array(w.memory.buffer, w.evaluate(0), 2)[0]]));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="no Node is installed")
def test_node_computes_the_same_bits() -> None:
    done = subprocess.run(["node", "-e", NODE, str(build.WASM)], capture_output=True, text=True, check=True)
    theirs, accuracy = json.loads(done.stdout)
    host = Host(spec_of("moe_switch", top_k=2))
    host.call("initialise", 7)
    for _ in range(40):
        host.call("draw_batch", 128)
        host.call("differentiate", 128, 0.01)
        host.call("update", 2e-3, 0.01, 0.9, 0.99, 1.0)
    ours = host.read("parameter_values", host.parameters).tobytes()
    assert hashlib.sha256(ours).hexdigest() == theirs
    assert host.evaluate()[0] == accuracy


@pytest.mark.parametrize(("experts", "seed"), [(4, 5), (8, 5), (16, 5), (16, 8)])
def test_experts_learn_where_a_rate_without_a_rise_is_stuck(experts: int, seed: int) -> None:
    """Seeds whose attention settles on a wrong token within the first steps, unless these are small."""
    host = Host(lab_spec_of({"experts": experts, "seed": seed}))
    host.call("initialise", seed)
    for done in range(host.spec.steps):
        host.step(host.spec.rate(done))
        if done % 100 == 99 and host.evaluate()[1] >= 0.99:
            return
    assert host.evaluate()[1] >= 0.99


# The generator and the samplers a second time, as the tests' own words.


class Mulberry32:
    def __init__(self, seed: int, purpose: int) -> None:
        self.state = seed
        self.state = (self.next() + purpose) % 2**32
        self.state = self.next()

    def next(self) -> int:
        self.state = (self.state + 0x6D2B79F5) % 2**32
        z = self.state
        z = ((z ^ (z >> 15)) * (z | 1)) % 2**32
        z ^= (z + ((z ^ (z >> 7)) * (z | 61)) % 2**32) % 2**32
        return z ^ (z >> 14)

    def below(self, n: int) -> int:
        return int(self.next() / 2**32 * n)

    def shuffle(self, *lists: list) -> None:
        for i in range(len(lists[0]) - 1, 0, -1):
            j = self.below(i + 1)
            for x in lists:
                x[i], x[j] = x[j], x[i]


Draw = Callable[[], tuple[list[int], list[int]]]
SPLIT, BATCHES = 100, 101


def addition(_: Spec, seed: int) -> Draw:
    source = Mulberry32(seed, BATCHES)

    def draw() -> tuple[list[int], list[int]]:
        n = source.below(1000)
        given = [int(c) for c in reversed(f"{n:03}")]
        answer = [int(c) for c in reversed(f"{n + 7:04}")]
        return [*given, 11, *answer], [*answer, 11]

    return draw


def modular(spec: Spec, seed: int) -> Draw:
    p = spec.modulus or 0
    pairs = [(a, b) for a in range(p) for b in range(p)]
    Mulberry32(seed, SPLIT).shuffle(pairs)
    pairs = pairs[: spec.task_object.train_pairs]
    source = Mulberry32(seed, BATCHES)

    def draw() -> tuple[list[int], list[int]]:
        a, b = pairs[source.below(len(pairs))]
        return [a, b, p], [(a + b) % p]

    return draw


def histogram(spec: Spec, seed: int) -> Draw:
    source = Mulberry32(seed, BATCHES)

    def draw() -> tuple[list[int], list[int]]:
        left, names = spec.symbols or 0, list(range(spec.alphabet or 0))
        tokens: list[int] = []
        targets: list[int] = []
        while left:
            count = 1 if left == 1 else 1 + source.below(left - 1)
            at = source.below(len(names))
            name, names[at] = names[at], names[-1]
            names.pop()
            tokens += [name] * count
            targets += [count - 1] * count
            left -= count
        source.shuffle(tokens, targets)
        return tokens, targets

    return draw


SAMPLERS: dict[str, Callable[[Spec, int], Draw]] = {
    "add7": addition,
    "modular_addition": modular,
    "histogram": histogram,
}


def published() -> list[tuple[Spec, str, Parameters]]:
    """The committed checkpoints: the run, the moment and the parameters of each."""
    folder = Path(__file__).parents[1] / "results" / "paper"
    runs = pl.read_parquet(folder / "runs.parquet")
    fields = [field.name for field in dataclasses.fields(Spec)]
    found = []
    for path in sorted((folder / "checkpoints").glob("*.safetensors")):
        row = runs.filter(pl.col("spec_id") == path.stem).row(0, named=True)
        spec = Spec(**{name: row[name] for name in fields if name in row})
        tensors = load_file(path)
        for moment in sorted({name.split("/")[0] for name in tensors}):
            own = {n.split("/")[1]: t for n, t in tensors.items() if n.startswith(f"{moment}/")}
            found.append((spec, moment, own))
    return found


@pytest.mark.parametrize("without", [0, NO_ATTENTION, NO_FFN])
def test_the_published_models_answer_as_in_pytorch(without: int) -> None:
    """Logits of the published checkpoints, whole and ablated, within 2e-6 of the largest of them.

    In single precision PyTorch itself is no nearer to its own double precision; the logits reach into the thousands.
    """
    edits = {0: {}, NO_ATTENTION: {"0.attention": torch.zeros_like}, NO_FFN: {"0.ffn": torch.zeros_like}}
    models = published()
    assert len(models) >= 18
    for spec, moment, parameters in models:
        task = spec.task_object
        host = Host(spec, SEQUENCES)
        host.start_from(parameters)
        every = task.evaluation(0, SEQUENCES)
        picks = torch.randint(len(every), (SEQUENCES,), generator=torch.Generator().manual_seed(0))
        tokens = every.tokens[picks]
        host.put_batch(tokens, every.targets[picks])
        host.call("look", SEQUENCES, without)
        shape = (SEQUENCES, len(task.read_out), task.classes)
        found = torch.from_numpy(host.read("logit_values", SEQUENCES * shape[1] * shape[2])).view(shape)
        exact = {n: t.double()[None] if t.is_floating_point() else t[None] for n, t in parameters.items()}
        right = forward(spec.architecture, exact, tokens[None], edits=edits[without]).logits[0]
        assert (found - right).abs().max() < 2e-6 * right.abs().max(), (spec.spec_id, moment)
