"""(c) An ensemble by `torch.func`: one model's loss as a function of its weights, `grad`, `vmap`.

Queries and the FFN are computed only where an answer or the balance loss needs them. On a GPU the whole step, with
the optimiser, is recorded as a CUDA graph; the gradient function is compiled before where that is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value, vmap

from peers.work import Work
from sparsity_moves.training import Spec

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


def losses(spec: Spec, p: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One model's trained loss and its cross-entropy; tokens (B, T), targets (B, R)."""
    task, d, experts = spec.task_object, spec.d_model, spec.experts
    first = task.read_out[0]  # answers are read from here to the end
    asked = 0 if spec.balance_weight else first
    x = F.embedding(tokens, p["embed"]) + p["position"]
    qkv = p["0.attention.qkv"]
    query, key, value = (
        (part @ weight).unflatten(-1, (spec.heads, -1)).transpose(1, 2)
        for part, weight in zip((x[:, asked:], x, x), qkv.chunk(3, 1), strict=True)
    )
    scores = query @ key.transpose(2, 3) / math.sqrt(d // spec.heads)
    if task.causal:
        place = torch.arange(task.length, device=tokens.device)
        scores = scores.masked_fill(place > place[asked:, None], -torch.inf)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    x = x[:, asked:] + mixed @ p["0.attention.out"] + p["0.attention.out_bias"]

    balance: Tensor | float = 0.0
    gates = None
    if experts > 1:
        probabilities = (x @ p["0.ffn.router"]).softmax(-1)
        best = probabilities.argmax(-1, keepdim=True)
        gates = (best == torch.arange(experts, device=tokens.device)).to(x.dtype)
        balance = experts * (gates.mean((0, 1)) * probabilities.mean((0, 1))).sum()
        gates = gates[:, first - asked :]
    x = x[:, first - asked :]
    inside = x @ p["0.ffn.w_in"]
    hidden = ACTIVATIONS[spec.activation](inside if spec.gated else inside + p["0.ffn.b_in"])
    if spec.gated:
        hidden = hidden * (x @ p["0.ffn.w_up"])
    if gates is not None:
        hidden = (hidden.unflatten(-1, (experts, -1)) * gates[..., None]).flatten(-2)
    x = x + hidden @ p["0.ffn.w_out"]
    if not spec.gated:
        x = x + (p["0.ffn.b_out"][0] if gates is None else gates @ p["0.ffn.b_out"])
    logits = x @ (p["embed"].T if task.tied else p["unembed"])
    entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return entropy + spec.balance_weight * balance, entropy


def forms(_spec: Spec, device: str) -> tuple[str, ...]:
    plain = ("eager", "torch.compile")
    return ("torch.compile, CUDA graph", "CUDA graph", *plain) if device == "cuda" else plain


def build(work: Work, device: str, form: str) -> Callable[[], Tensor]:
    torch.backends.cuda.matmul.allow_tf32 = work.spec.precision == "tf32"
    spec, cuda = work.spec, device == "cuda"
    p = {name: value.to(device, copy=True) for name, value in work.start.items()}  # trained in place
    optimiser = torch.optim.AdamW(
        list(p.values()),
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        weight_decay=spec.weight_decay,
        fused=True,
        capturable=cuda,
    )

    def gradients(p: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> tuple[list[Tensor], Tensor]:
        """Every model's gradient, clipped to the model's own norm, and its cross-entropy."""
        of_one = grad_and_value(lambda *given: losses(spec, *given), has_aux=True)
        gradient, (_, entropy) = vmap(of_one)(p, tokens, targets)
        parts = list(gradient.values())
        if spec.clip:
            norm = torch.stack([g.flatten(1).square().sum(1) for g in parts]).sum(0).sqrt()
            scale = (spec.clip / (norm + 1e-6)).clamp(max=1.0)
            parts = [g * scale.view(-1, *(1,) * (g.dim() - 1)) for g in parts]
        return parts, entropy

    if "torch.compile" in form:
        torch._dynamo.reset()
        gradients = torch.compile(gradients, dynamic=False)

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        parts, entropy = gradients(p, tokens, targets)
        for parameter, part in zip(p.values(), parts, strict=True):
            parameter.grad = part
        optimiser.step()
        return entropy

    batches = work.on(device)
    if "CUDA graph" in form:
        step = recorded(step, optimiser, batches[0])

    def a_round() -> Tensor:
        return torch.stack([step(*batch).clone() for batch in batches]).cpu()

    return a_round


def recorded(
    step: Callable[[Tensor, Tensor], Tensor], optimiser: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The step as a CUDA graph; the weights and the optimiser's state are as they were before."""
    given = tuple(part.clone() for part in batch)
    before = [p.clone() for p in optimiser.param_groups[0]["params"]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*given)
    torch.cuda.current_stream().wait_stream(side)
    for parameter, value in zip(optimiser.param_groups[0]["params"], before, strict=True):
        parameter.copy_(value)
        parameter.grad = None
        for state in optimiser.state[parameter].values():
            state.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        entropy = step(*given)
    last: list[Tensor] = []
    used = (step, optimiser)  # the graph holds addresses only: weights and moments must not go

    def replayed(tokens: Tensor, targets: Tensor) -> Tensor:
        if not last or last[0] is not tokens:  # the whole pool, every step, need not be copied again
            given[0].copy_(tokens)
            given[1].copy_(targets)
            last[:] = [tokens]
        graph.replay()
        assert used
        return entropy

    return replayed
