"""(d) JAX: one model's loss, `grad`, `vmap`, and a `scan` over a round's steps inside one `jit`, buffers donated.

Queries and the FFN are computed only where an answer or the balance loss needs them, as in (c).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU's memory is shared with the others

import torch
from torch import Tensor

from peers import Unavailable
from peers.work import Work
from sparsity_moves.training import Spec

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise Unavailable(f"JAX is not installed ({error})") from None

ACTIVATIONS = {"silu": jax.nn.silu, "gelu": partial(jax.nn.gelu, approximate=False), "relu": jax.nn.relu}

Arrays = dict[str, jax.Array]


def losses(spec: Spec, p: Arrays, tokens: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One model's trained loss and its cross-entropy; tokens (B, T), targets (B, R)."""
    task, d, experts, batch = spec.task_object, spec.d_model, spec.experts, len(tokens)
    first = task.read_out[0]  # answers are read from here to the end
    asked = 0 if spec.balance_weight else first
    x = p["embed"][tokens] + p["position"]
    query, key, value = (
        (part @ weight).reshape(batch, -1, spec.heads, d // spec.heads)
        for part, weight in zip((x[:, asked:], x, x), jnp.split(p["0.attention.qkv"], 3, 1), strict=True)
    )
    scores = jnp.einsum("bphk,bthk->bhpt", query, key) / (d // spec.heads) ** 0.5
    if task.causal:
        place = jnp.arange(task.length)
        scores = jnp.where(place > place[asked:, None], -jnp.inf, scores)
    mixed = jnp.einsum("bhpt,bthk->bphk", jax.nn.softmax(scores), value).reshape(batch, -1, d)
    x = x[:, asked:] + mixed @ p["0.attention.out"] + p["0.attention.out_bias"]

    balance: jax.Array | float = 0.0
    gates = None
    if experts > 1:
        probabilities = jax.nn.softmax(x @ p["0.ffn.router"])
        gates = jax.nn.one_hot(probabilities.argmax(-1), experts)
        balance = experts * (gates.mean((0, 1)) * probabilities.mean((0, 1))).sum()
        gates = gates[:, first - asked :]
    x = x[:, first - asked :]
    inside = x @ p["0.ffn.w_in"]
    hidden = ACTIVATIONS[spec.activation](inside if spec.gated else inside + p["0.ffn.b_in"])
    if spec.gated:
        hidden = hidden * (x @ p["0.ffn.w_up"])
    if gates is not None:
        hidden = hidden * jnp.repeat(gates, spec.width // experts, -1)
    x = x + hidden @ p["0.ffn.w_out"]
    if not spec.gated:
        x = x + (p["0.ffn.b_out"][0] if gates is None else gates @ p["0.ffn.b_out"])
    logits = x @ (p["embed"].T if task.tied else p["unembed"])
    right = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    entropy = (jax.nn.logsumexp(logits, -1) - right).mean()
    return entropy + spec.balance_weight * balance, entropy


def one_step(spec: Spec, state: tuple[Arrays, Arrays, Arrays, jax.Array], tokens: Any, targets: Any) -> Any:
    """One model's update by AdamW, as PyTorch writes it: the new state, and the cross-entropy before."""
    p, m, v, t = state
    gradient, entropy = jax.grad(partial(losses, spec), has_aux=True)(p, tokens, targets)
    if spec.clip:
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in gradient.values()))
        scale = jnp.minimum(1.0, spec.clip / (norm + 1e-6))
        gradient = {name: g * scale for name, g in gradient.items()}
    t = t + 1
    m = {name: spec.beta1 * m[name] + (1 - spec.beta1) * g for name, g in gradient.items()}
    v = {name: spec.beta2 * v[name] + (1 - spec.beta2) * g * g for name, g in gradient.items()}

    def moved(name: str) -> jax.Array:
        mean, square = m[name] / (1 - spec.beta1**t), v[name] / (1 - spec.beta2**t)
        shrunk = p[name] * (1 - spec.learning_rate * spec.weight_decay)
        return shrunk - spec.learning_rate * mean / (jnp.sqrt(square) + 1e-8)

    return ({name: moved(name) for name in p}, m, v, t), entropy


def forms(spec: Spec, device: str) -> tuple[str, ...]:
    """How products round: TF32 where the protocol allows it; else fp32, or as close by three TF32 products."""
    if spec.precision == "tf32":
        return ("tensorfloat32",)
    return ("float32", "TF32_TF32_F32_X3") if device == "cuda" else ("float32",)


def build(work: Work, device: str, form: str) -> Callable[[], Tensor]:
    if device == "cuda" and jax.default_backend() != "gpu":
        raise Unavailable("JAX sees no GPU")
    place = jax.devices("gpu" if device == "cuda" else "cpu")[0]
    warnings.filterwarnings("ignore", message="Some donated buffers were not usable")

    def array(x: Tensor) -> jax.Array:
        x = x.clone() if x.is_floating_point() else x.int()  # never memory that is given away later
        return jax.device_put(x.numpy(), place)

    p = {name: array(value) for name, value in work.start.items()}
    zeros = [{name: jnp.zeros_like(value) for name, value in p.items()} for _ in range(2)]
    with jax.default_device(place):
        state = (p, *zeros, jnp.zeros(len(work.specs)))
    tokens, targets = array(work.tokens), array(work.targets)
    step = jax.vmap(partial(one_step, work.spec))

    @partial(jax.jit, donate_argnums=0)
    def train(state: Any, tokens: jax.Array, targets: jax.Array) -> Any:
        if len(tokens) == 1:  # the whole pool, every step
            return jax.lax.scan(lambda s, _: step(s, tokens[0], targets[0]), state, length=work.steps)
        return jax.lax.scan(lambda s, batch: step(s, *batch), state, (tokens, targets))

    def a_round() -> Tensor:
        nonlocal state
        with jax.default_matmul_precision(form):
            state, entropy = train(state, tokens, targets)
        return torch.tensor(jax.device_get(entropy))

    return a_round
