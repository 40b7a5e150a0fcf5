"""A small decoder-only model of bytes, whose FFN is dense, an MoE or trees: equal tokens, equal parameters.

The model is GPT-NeoX's with its residual branches one after the other. What is looked at is what the book looks at
elsewhere: perplexity, how trees are used as they learn, and what is left of the model without its FFNs or attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from sparsity_moves.errors import UserError
from sparsity_moves.kernels import open_experts
from sparsity_moves.kernels.dispatch import dispatched_experts
from sparsity_moves.language.module import counting, every, usage
from sparsity_moves.language.replace import mlps, with_trees
from sparsity_moves.language.text import windows
from sparsity_moves.model import FeedForward
from sparsity_moves.model.architecture import Activation, Nonlinearity
from sparsity_moves.model.routing import balance_loss, by_score

Kind = Literal["dense", "moe", "tree"]


@dataclass(frozen=True, kw_only=True)
class LanguageSpec:
    """Every setting of one run. The paper's own are unknown; these are ours."""

    ffn: Kind
    seed: int
    d_model: int = 128
    layers: int = 4
    heads: int = 4
    width: int = 512
    """Units of a dense FFN; an MoE has as many, and trees as many as are whole trees."""
    experts: int = 4
    balance_weight: float = 0.01
    tree_depth: int = 3
    nonlinearity: Nonlinearity = "node"
    activation: Activation = "gelu"
    length: int = 128
    batch: int = 16
    steps: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    evaluate_every: int = 100
    evaluation: int = 8
    """Batches of held-out text at each look."""

    def __post_init__(self) -> None:
        if self.ffn not in get_args(Kind):
            raise UserError(f"no FFN is called '{self.ffn}'; there are {', '.join(get_args(Kind))}")
        if self.steps < 1 or self.evaluate_every < 1:
            raise UserError("a run takes at least one step, and looks at itself at least every so many")
        if self.activation not in get_args(Activation):
            known = ", ".join(get_args(Activation))
            raise UserError(f"no activation is called '{self.activation}'; there are {known}")
        if self.ffn.startswith("tree") and (2 << self.tree_depth) - 1 > self.width:
            raise UserError(
                f"a tree of height {self.tree_depth} has more nodes than the {self.width} units of the layer"
            )
        _ = self.shape  # which refuses what is no FFN before anything is trained

    @property
    def shape(self) -> FeedForward:
        """Of one layer's FFN."""
        if self.ffn == "moe":
            return FeedForward(self.width, self.experts, 1, "learned", "switch", activation=self.activation)
        if self.ffn == "dense":
            return FeedForward(self.width, activation=self.activation)
        nodes = (2 << self.tree_depth) - 1
        return FeedForward(
            max(1, self.width // nodes) * nodes,
            router="tree",
            tree_depth=self.tree_depth,
            nonlinearity=self.nonlinearity,
            activation=self.activation,
        )


class Experts(nn.Module):
    """An MoE in the place of an MLP, with Switch gates; `balance` is the balance loss of the last tokens it met."""

    def __init__(self, d_model: int, ffn: FeedForward) -> None:
        super().__init__()
        self.ffn = ffn
        shapes = {"router": (d_model, ffn.experts), "w_in": (d_model, ffn.width), "b_in": (ffn.width,)}
        shapes |= {"w_out": (ffn.width, d_model), "b_out": (ffn.experts, d_model)}
        for name, shape in shapes.items():
            bound = 1 / math.sqrt(ffn.expert_width if name.endswith("out") else d_model)
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
        self.balance = torch.zeros(())

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        flat = x.flatten(0, -2)[None]
        p = {name: parameter[None] for name, parameter in self.named_parameters()}
        routing = by_score(self.ffn, p["router"], flat[:, None])
        self.balance = balance_loss(self.ffn, routing).sum()
        experts = dispatched_experts if x.is_cuda else open_experts
        return experts(self.ffn, p, "", flat, routing)[0].view_as(x)


def build(spec: LanguageSpec) -> nn.Module:
    """The model at its start; all but the FFN is the same for every kind, at one seed. Needs `transformers`."""
    try:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    except ImportError:
        raise UserError("language models need transformers: pip install sparsity-moves[language]") from None
    config = GPTNeoXConfig(
        vocab_size=256, hidden_size=spec.d_model, num_hidden_layers=spec.layers, num_attention_heads=spec.heads,
        intermediate_size=spec.width, hidden_act=spec.activation if spec.activation != "none" else "linear",
        max_position_embeddings=spec.length, use_parallel_residual=False, bos_token_id=0, eos_token_id=0,
        use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model: nn.Module = GPTNeoXForCausalLM(config)
        if spec.ffn == "tree":
            with_trees(model, spec.shape)
        elif spec.ffn == "moe":
            for place in mlps(model).values():
                setattr(place.parent, place.name, Experts(place.d_model, spec.shape))
    return model


@contextmanager
def without(model: nn.Module, component: Literal["ffn", "attention"]) -> Iterator[None]:
    """While it is open, the outputs of every layer's FFN, or attention, are zero."""
    name = "mlp" if component == "ffn" else "attention"

    def nothing(_: nn.Module, __: Any, out: Any) -> Any:
        return torch.zeros_like(out) if isinstance(out, Tensor) else (torch.zeros_like(out[0]), *out[1:])

    hooks = [
        getattr(module, name).register_forward_hook(nothing)
        for module in model.modules()
        if type(module).__name__ == "GPTNeoXLayer"
    ]
    assert hooks, "the model has no layers that we know"
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def entropy(model: nn.Module, tokens: Tensor) -> Float[Tensor, ""]:
    """Mean of -log p(next byte), in nats."""
    logits = model(tokens).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.no_grad()
def look(model: nn.Module, spec: LanguageSpec, held_out: UInt8[Tensor, " B"]) -> dict[str, Any]:
    """Perplexity a byte, whole and without a component, and how trees are used: always on the same windows."""
    device = next(model.parameters()).device
    given = [w.to(device) for w in windows(held_out, spec.batch, spec.length, 0, spec.evaluation)]

    def perplexity() -> float:
        return math.exp(sum(float(entropy(model, tokens)) for tokens in given) / len(given))

    training = model.training
    model.eval()
    with counting(model) as visited:
        row: dict[str, Any] = {"perplexity": perplexity()}
        rows = usage(model, visited)
        row["idle_units"] = sum(int((counts == 0).sum()) for counts in visited.values())
    for component in ("ffn", "attention"):
        with without(model, component):
            row[f"no_{component}_perplexity"] = perplexity()
    for name in ("leaf_entropy", "balance", "dead_nodes"):
        values = [float(layer[name]) for layer in rows]
        row[name] = sum(values) / len(values) if values else None
    model.train(training)
    return row


def train(
    spec: LanguageSpec,
    text: UInt8[Tensor, " B"],
    held_out: UInt8[Tensor, " B"],
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda step: None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train one model; gives it, and one row a look: step 0, every so many, and the last.

    Columns: `step`, `tokens` seen, `perplexity`, `no_ffn_perplexity`, `no_attention_perplexity`, `parameters`,
    `active_units` a layer, and of trees `leaf_entropy`, `balance`, `dead_nodes` (means over layers), `idle_units`.
    """
    model = build(spec).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    shape = spec.shape
    sizes = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "active_units": shape.expert_width * shape.open_blocks,
    }
    assert bool(every(model)) == (spec.ffn == "tree")
    rows = [{"step": 0, "tokens": 0, **sizes, **look(model, spec, held_out)}]
    for step, window in enumerate(windows(text, spec.batch, spec.length, spec.seed, spec.steps), start=1):
        loss = entropy(model, window.to(device))
        for module in experts:
            loss = loss + spec.balance_weight * module.balance
        optimiser.zero_grad()
        loss.backward()
        if spec.clip:
            nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        optimiser.step()
        if step % spec.evaluate_every == 0 or step == spec.steps:
            tokens = step * spec.batch * spec.length
            rows.append({"step": step, "tokens": tokens, **sizes, **look(model, spec, held_out)})
            progress(step)
    return model, rows
