"""What a user would write instead: one model, ordinary PyTorch modules, an ordinary training loop.

Nothing here knows the project's model, fleets or kernels; only the add-7 task is shared. All eight positions are
computed, experts are a loop over modules, AdamW and clipping are PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsity_moves.tasks import Addition


class Dense(nn.Module):
    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(d, width), nn.Linear(width, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.outside(F.silu(self.inside(x)))


class Gated(nn.Module):
    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(d, width, bias=False), nn.Linear(d, width, bias=False)
        self.down = nn.Linear(width, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """Top-1 with the renormalised gate, which is 1; tokens of each expert gathered and run together."""

    def __init__(self, d: int, experts: list[nn.Module]) -> None:
        super().__init__()
        self.experts, self.router = nn.ModuleList(experts), nn.Linear(d, len(experts), bias=False)
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        probabilities = self.router(flat).softmax(-1)
        gate, expert = probabilities.topk(1, dim=-1)
        gate = gate / gate.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for number, module in enumerate(self.experts):
            mine = (expert[:, 0] == number).nonzero()[:, 0]
            out = out.index_add(0, mine, gate[mine] * module(flat[mine]))
        load = F.one_hot(expert[:, 0], len(self.experts)).float().mean(0)
        self.balance = len(self.experts) * (load * probabilities.mean(0)).sum()
        return out.view_as(x)


class Transformer(nn.Module):
    def __init__(self, feed_forward: nn.Module, d: int = 64, heads: int = 4, length: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.position = nn.Embedding(12, d), nn.Embedding(length, d)
        self.query, self.key, self.value = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.out = nn.Linear(d, d)
        self.feed_forward = feed_forward

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1]))
        split = [
            m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*split, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.feed_forward(x)
        return x @ self.embed.weight.T


def build(arm: str, d: int = 64) -> Transformer:
    """The arms of the first result at the paper's add-7 widths."""
    match arm:
        case "dense":
            return Transformer(Dense(d, 256))
        case "narrow":
            return Transformer(Dense(d, 64))
        case "glu":
            return Transformer(Gated(d, 170))
        case "moe":
            return Transformer(Mixture(d, [Dense(d, 64) for _ in range(4)]))
        case "moe_glu":
            return Transformer(Mixture(d, [Gated(d, 42) for _ in range(4)]))
    raise ValueError(f"no arm is called '{arm}'")


def train(arm: str, steps: int, seed: int = 0) -> Iterator[float]:
    """Train one model by the paper's add-7 protocol, giving the loss of every step."""
    torch.manual_seed(seed)
    model = build(arm)
    every = Addition().everything()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(steps):
        drawn = torch.randint(1000, (128,))
        logits = model(every.tokens[drawn])[:, 3:]
        loss = F.cross_entropy(logits.flatten(0, 1), every.targets[drawn].flatten())
        balance = model.feed_forward.balance if isinstance(model.feed_forward, Mixture) else 0.0
        optimiser.zero_grad()
        (loss + 0.01 * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        yield loss.item()
