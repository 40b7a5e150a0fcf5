"""What a user would write instead: one model, ordinary PyTorch modules, an ordinary training loop.

Nothing here knows the project's model, fleets or kernels; only tasks and settings are shared. All positions are
computed, experts are modules in a loop, AdamW and clipping are PyTorch's own. `load` gives a model the weights
that the project starts from, so that both can be held side by side, loss by loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsity_moves.studies import arm
from sparsity_moves.training import Spec

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


class Dense(nn.Module):
    def __init__(self, d: int, width: int, activation: str) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(d, width), nn.Linear(width, d)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.outside(self.activation(self.inside(x)))


class Gated(nn.Module):
    def __init__(self, d: int, width: int, activation: str) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(d, width, bias=False), nn.Linear(d, width, bias=False)
        self.down = nn.Linear(width, d, bias=False)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """Top-1 with the renormalised gate, which is 1. Each expert runs on the tokens that chose it or, `masked`, on
    all of them: more products, but no shape depends on the data, so a GPU need not wait for the host."""

    def __init__(self, d: int, experts: list[nn.Module], masked: bool = False) -> None:
        super().__init__()
        self.experts, self.router = nn.ModuleList(experts), nn.Linear(d, len(experts), bias=False)
        self.masked = masked

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the balance loss."""
        flat = x.flatten(0, -2)
        probabilities = self.router(flat).softmax(-1)
        gate, expert = probabilities.topk(1, dim=-1)
        gate = gate / gate.sum(-1, keepdim=True)
        chosen = F.one_hot(expert[:, 0], len(self.experts)).to(x.dtype)
        out = torch.zeros_like(flat)
        for number, module in enumerate(self.experts):
            if self.masked:
                out = out + chosen[:, number, None] * gate * module(flat)
            else:
                mine = (expert[:, 0] == number).nonzero()[:, 0]
                out = out.index_add(0, mine, gate[mine] * module(flat[mine]))
        balance = len(self.experts) * (chosen.mean(0) * probabilities.mean(0)).sum()
        return out.view_as(x), balance


class Transformer(nn.Module):
    def __init__(self, spec: Spec, masked: bool = False) -> None:
        super().__init__()
        task, d, width = spec.task_object, spec.d_model, spec.width // spec.experts
        self.heads, self.causal, self.answers = spec.heads, task.causal, task.read_out[0]
        self.embed, self.position = nn.Embedding(task.vocabulary, d), nn.Embedding(task.length, d)
        self.query, self.key, self.value = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.out = nn.Linear(d, d)
        block = Gated if spec.gated else Dense
        blocks: list[nn.Module] = [block(d, width, spec.activation) for _ in range(spec.experts)]
        self.feed_forward = blocks[0] if spec.experts == 1 else Mixture(d, blocks, masked)
        self.unembed = None if task.tied else nn.Linear(d, task.classes, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor | float]:
        """Logits at the answers, and the balance loss over all positions."""
        x = self.embed(tokens) + self.position.weight
        split = [
            m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*split, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        if isinstance(self.feed_forward, Mixture):
            update, balance = self.feed_forward(x)
        else:
            update, balance = self.feed_forward(x), 0.0
        x = (x + update)[:, self.answers :]
        return x @ self.embed.weight.T if self.unembed is None else self.unembed(x), balance


@torch.no_grad()
def load(model: Transformer, start: dict[str, Tensor]) -> None:
    """Give the model one model's weights as the project names and lays them out (x @ W, experts side by side)."""
    model.embed.weight.copy_(start["embed"])
    model.position.weight.copy_(start["position"])
    if model.unembed is not None:
        model.unembed.weight.copy_(start["unembed"].T)
    for module, weight in zip(
        (model.query, model.key, model.value), start["0.attention.qkv"].chunk(3, 1), strict=True
    ):
        module.weight.copy_(weight.T)
    model.out.weight.copy_(start["0.attention.out"].T)
    model.out.bias.copy_(start["0.attention.out_bias"])
    block = {name.removeprefix("0.ffn."): value for name, value in start.items() if "ffn" in name}
    mixture = isinstance(model.feed_forward, Mixture)
    if mixture:
        model.feed_forward.router.weight.copy_(block["router"].T)
    experts = list(model.feed_forward.experts) if mixture else [model.feed_forward]
    width = len(block["w_out"]) // len(experts)
    for number, expert in enumerate(experts):
        own = slice(number * width, (number + 1) * width)
        if isinstance(expert, Gated):
            expert.gate.weight.copy_(block["w_in"][:, own].T)
            expert.up.weight.copy_(block["w_up"][:, own].T)
            expert.down.weight.copy_(block["w_out"][own].T)
        else:
            expert.inside.weight.copy_(block["w_in"][:, own].T)
            expert.inside.bias.copy_(block["b_in"][own])
            expert.outside.weight.copy_(block["w_out"][own].T)
            expert.outside.bias.copy_(block["b_out"][number])


Losses = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Tokens and targets: the cross-entropy, and the loss that is trained on."""


def losses(model: Transformer, spec: Spec) -> Losses:
    def of(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, balance = model(tokens)
        entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return entropy.detach(), entropy + spec.balance_weight * balance

    return of


def updates(model: Transformer, spec: Spec, loss: Losses, fused: bool | None = None) -> Losses:
    """One step of training; gives what `loss` gave before it."""
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        weight_decay=spec.weight_decay,
        fused=fused,
    )

    def step(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        entropy, total = loss(tokens, targets)
        optimiser.zero_grad()
        total.backward()
        if spec.clip:
            nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        optimiser.step()
        return entropy, total

    return step


def train(name: str, steps: int, seed: int = 0) -> Iterator[float]:
    """Train one model by the paper's add-7 protocol, giving the loss of every step."""
    spec = arm(name, "paper", "add7", seed)
    torch.manual_seed(seed)
    model = Transformer(spec)
    every = spec.task_object.training_pool(seed, 0, 0)
    step = updates(model, spec, losses(model, spec))
    for _ in range(steps):
        drawn = torch.randint(len(every), (spec.batch,))
        yield step(every.tokens[drawn], every.targets[drawn])[0].item()
