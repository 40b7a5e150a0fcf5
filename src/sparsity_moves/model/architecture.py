"""The model as data: its shape, its parameters by name, how they start, and exact counts.

One Transformer. It has: learned absolute positions, added; multi-head attention without biases on Q, K, V;
an FFN that is one equation (`feedforward`); residual connections; optionally RMSNorm before attention, before
the FFN and at the output (the primary arm has none). It has no key-value cache, no rotary anything;
dropout, where a run has it, is training's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.tasks import Task, generator

Activation = Literal["relu", "gelu", "silu", "none"]
Router = Literal["none", "learned", "frozen", "hash", "hash_context", "tree"]
Gate = Literal["renormalised", "switch"]
Norm = Literal["none", "rms"]
Nonlinearity = Literal["node", "sum", "tree"]
Parameters = dict[str, Tensor]
"""Every parameter by name, each with a leading axis M: one slice a model of the fleet."""


def known(what: str, name: str, names: Any) -> None:
    """Raise `UserError` unless the name is among those of a Literal."""
    if name not in get_args(names):
        raise UserError(f"no {what} is called '{name}'; there are {', '.join(get_args(names))}")


@dataclass(frozen=True)
class FeedForward:
    """Which FFN: `width` hidden units in `experts` equal blocks, `top_k` of them open for a token; or in trees."""

    width: int = 256
    """All hidden units together, over the experts."""
    experts: int = 1
    top_k: int = 1
    router: Router = "none"
    gate: Gate = "renormalised"
    """`renormalised`: the chosen probabilities divided by their sum; `switch`: as they are (Fedus et al. 2021)."""
    gated: bool = False
    """A GLU: φ(x W_in) ⊙ x W_up. With activation `none` it is exactly bilinear (Pearce et al. 2024)."""
    activation: Activation = "silu"
    tree_depth: int = 0
    """Levels below a tree's root: it has 2^(depth + 1) - 1 nodes, each a hidden unit. 0 where there are no trees."""
    always_on: int = 0
    """Units beside the trees that every token uses: the first of `width`."""
    nonlinearity: Nonlinearity = "node"
    """Where trees have their φ: at every `node`, or after the `sum` of all responses, or of each `tree`'s own."""

    def __post_init__(self) -> None:
        known("router", self.router, Router)
        known("place of a nonlinearity", self.nonlinearity, Nonlinearity)
        known("gate", self.gate, Gate)
        known("activation", self.activation, Activation)
        if self.width < 1 or self.experts < 1:
            raise UserError(
                f"an FFN needs at least one hidden unit and one expert, not {self.width} and {self.experts}"
            )
        if self.width % self.experts:
            raise UserError(f"{self.experts} experts do not divide a width of {self.width}")
        if not 1 <= self.top_k <= self.experts:
            raise UserError(f"top-k is from 1 to the number of experts ({self.experts}), not {self.top_k}")
        if self.router == "tree":
            self._must_be_trees()
        elif self.tree_depth or self.always_on or self.nonlinearity != "node":
            raise UserError(
                f"tree depth, always-on units and φ after a sum are settings of trees, not of router '{self.router}'"
            )
        elif (self.experts > 1) != (self.router != "none"):
            raise UserError(
                f"{self.experts} expert(s) with router '{self.router}': a router needs experts to choose"
            )
        if self.router.startswith("hash") and self.top_k != 1:
            raise UserError("hash routing opens exactly one expert, so top-k must be 1")

    def _must_be_trees(self) -> None:
        if self.tree_depth < 1:
            raise UserError(f"a tree has at least one level below its root, not {self.tree_depth}")
        if self.experts > 1 or self.gated:
            raise UserError("a tree's blocks are its nodes, so it has neither experts nor a GLU")
        if self.always_on < 0 or self.trees < 1 or self.width != self.always_on + self.trees * self.nodes:
            raise UserError(
                f"a width of {self.width}, {self.always_on} of it always on, is no whole number of trees "
                f"of {self.nodes} nodes"
            )

    @property
    def nodes(self) -> int:
        """Of one tree."""
        return (2 << self.tree_depth) - 1

    @property
    def trees(self) -> int:
        """Trees side by side."""
        return (self.width - self.always_on) // self.nodes if self.router == "tree" else 0

    @property
    def blocks(self) -> int:
        """Blocks that have a gate each: experts, or single units where there are trees."""
        return self.width if self.router == "tree" else self.experts

    @property
    def open_blocks(self) -> int:
        """Those of them that are open for a token."""
        if self.router == "tree":
            return self.always_on + self.trees * (self.tree_depth + 1)
        return self.top_k

    @property
    def expert_width(self) -> int:
        return self.width // self.blocks

    @property
    def bias(self) -> bool:
        return not self.gated

    @property
    def output_bias(self) -> bool:
        return self.bias and self.router != "tree"

    @property
    def plain_gates(self) -> bool:
        """Whether every open gate is exactly 1, so that nothing need be multiplied by it."""
        return self.top_k == 1 and (self.gate == "renormalised" or not self.scores)

    @property
    def scores(self) -> bool:
        """Whether the router is a linear map of the residual stream."""
        return self.router in ("learned", "frozen")


@dataclass(frozen=True)
class Architecture:
    """Everything that decides a model's parameters and forward pass."""

    task: Task
    d_model: int = 64
    heads: int = 4
    depth: int = 1
    norm: Norm = "none"
    ffn: FeedForward = FeedForward()

    def __post_init__(self) -> None:
        known("norm", self.norm, Norm)
        if self.depth < 1:
            raise UserError(f"a Transformer has at least one layer, not {self.depth}")
        if self.heads < 1 or self.d_model % self.heads:
            raise UserError(f"{self.heads} heads do not divide a model width of {self.d_model}")

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every float parameter's shape, in the order in which they are drawn.

        Weights act from the right (x @ W). The FFN comes last, so that arms of one seed share all the rest.
        """
        task, d, ffn = self.task, self.d_model, self.ffn
        shapes: dict[str, tuple[int, ...]] = {"embed": (task.vocabulary, d), "position": (task.length, d)}
        if not task.tied:
            shapes["unembed"] = (d, task.classes)
        if self.norm == "rms":
            shapes["norm"] = (d,)
        for layer in range(self.depth):
            a, f = f"{layer}.attention.", f"{layer}.ffn."
            shapes |= {a + "qkv": (d, 3 * d), a + "out": (d, d), a + "out_bias": (d,)}
            if self.norm == "rms":
                shapes |= {a + "norm": (d,), f + "norm": (d,)}
            if ffn.scores:
                shapes[f + "router"] = (d, ffn.experts)
            shapes[f + "w_in"] = (d, ffn.width)
            if ffn.gated:
                shapes[f + "w_up"] = (d, ffn.width)
            if ffn.bias:
                shapes[f + "b_in"] = (ffn.width,)
            shapes[f + "w_out"] = (ffn.width, d)
            if ffn.output_bias:
                shapes[f + "b_out"] = (ffn.experts, d)
        return shapes

    def trained(self) -> list[str]:
        """Names of the parameters that training may change: a frozen router is not among them."""
        return [
            name for name in self.shapes() if not (name.endswith(".router") and self.ffn.router == "frozen")
        ]

    def initialise(self, seed: int) -> Parameters:
        """One model's start, as PyTorch's layers start: N(0, 1) embeddings, linear layers U(±1/√fan_in).

        The output's fan-in is one expert's units, or the units that trees open for a token.
        A frozen router and its learned twin start the same. Hash tables, where there are any, come as int64.
        """
        parameters: Parameters = {}
        units = self.ffn.open_blocks if self.ffn.router == "tree" else self.ffn.expert_width
        for name, shape in self.shapes().items():
            source = generator(seed, "initial", name)
            kind = name.rsplit(".", 1)[-1]
            if kind in ("embed", "position"):
                parameters[name] = torch.randn(shape, generator=source)
            elif kind == "norm":
                parameters[name] = torch.ones(shape)
            else:
                bound = 1 / math.sqrt(units if kind in ("w_out", "b_out") else self.d_model)
                parameters[name] = torch.empty(shape).uniform_(-bound, bound, generator=source)
        for layer in range(self.depth):
            table, source = f"{layer}.ffn.hash", generator(seed, "hash", layer)
            if self.ffn.router == "hash":  # as even a split of the vocabulary as there is
                parameters[table] = torch.randperm(self.task.vocabulary, generator=source) % self.ffn.experts
            elif self.ffn.router == "hash_context":
                shape = (self.task.length, self.task.vocabulary)
                parameters[table] = torch.randint(2**31, shape, generator=source)
        return parameters


def stack(models: list[Parameters]) -> Parameters:
    """Many models of one architecture as one fleet."""
    return {name: torch.stack([model[name] for model in models]) for name in models[0]}


@dataclass(frozen=True)
class Counts:
    """Exact sizes of one architecture."""

    parameters: int
    active_parameters: int
    """Parameters that take part in one token's forward pass: of the FFN, the open blocks and the router."""
    ffn_parameters: int
    active_ffn_parameters: int
    router_parameters: int
    flops_per_token: int
    """Multiplications and additions of the matrix products in one token's forward pass, 2 a multiply-add.

    Every position of the sequence counts as one token, and attends to the whole length (as a masked product
    does). Elementwise work, softmax and norms are left out, as is usual."""
    ffn_flops_per_token: int


def count(architecture: Architecture) -> Counts:
    """Parameters and FLOPs, of the whole model and of its FFN block (one layer's)."""
    sizes = {name: math.prod(shape) for name, shape in architecture.shapes().items()}
    ffn, d, depth = architecture.ffn, architecture.d_model, architecture.depth
    block = {name: size for name, size in sizes.items() if name.startswith("0.ffn.") and "norm" not in name}
    router = block.get("0.ffn.router", 0)
    experts = sum(block.values()) - router
    idle = experts - experts * ffn.open_blocks // ffn.blocks
    open_width = ffn.expert_width * ffn.open_blocks
    ffn_flops = 2 * d * open_width * (3 if ffn.gated else 2) + 2 * router
    attention_flops = 2 * d * 4 * d + 2 * 2 * architecture.task.length * d
    total = sum(sizes.values())
    return Counts(
        parameters=total,
        active_parameters=total - depth * idle,
        ffn_parameters=experts + router,
        active_ffn_parameters=experts - idle + router,
        router_parameters=router,
        flops_per_token=depth * (attention_flops + ffn_flops) + 2 * d * architecture.task.classes,
        ffn_flops_per_token=ffn_flops,
    )
