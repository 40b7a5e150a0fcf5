"""What a step cannot do without, and how fast this device could do it.

Products: those that the answers, and the balance loss where there is one, need: forward, and twice that backward.
Queries, keys and values depend on (position, token) alone, so they are products of small tables. Bytes: weights
and both of AdamW's moments read and written once, tokens and targets read; activations could stay on the chip.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from peers.work import Work
from sparsity_moves.model import count
from sparsity_moves.studies.engine import cores


def flops(work: Work) -> float:
    """Of one model's step, 2 a multiply-add."""
    spec, task, ffn = work.spec, work.spec.task_object, work.spec.architecture.ffn
    d, batch, length = spec.d_model, work.tokens.shape[2], task.length
    asked = range(length) if spec.balance_weight and spec.balance_positions == "all" else task.read_out
    seen = sum(position + 1 if task.causal else length for position in asked)
    tables = min(batch, task.vocabulary) * length * 2 * d * 3 * d
    attention = len(asked) * 2 * d * d + seen * 4 * d  # output matrix; scores and mixture
    router = len(asked) * 2 * d * ffn.experts if ffn.scores else 0
    hidden = ffn.expert_width * ffn.top_k
    answer = 2 * d * hidden * (3 if ffn.gated else 2) + 2 * d * task.classes
    return 3.0 * (tables + batch * (attention + router + len(task.read_out) * answer))


def bytes_moved(work: Work) -> float:
    """Of one model's step."""
    numbers = work.tokens.shape[2] * (work.tokens.shape[3] + work.targets.shape[3])
    return 6 * 4.0 * count(work.spec.architecture).parameters + 8.0 * numbers


def seconds_each(work: Callable[[], object], device: str, seconds: float = 0.7) -> float:
    """The best of many calls."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def ceilings(device: str) -> dict[str, float]:
    """FLOP/s of square products, and bytes/s of a copy (read and written)."""
    size, big = (8192, 2**30) if device == "cuda" else (1024, 2**26)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    rate = {}
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(cores())
    for name in ("fp32", "tf32"):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        rate[name] = 2.0 * size**3 / seconds_each(lambda: torch.mm(a, b, out=out), device)
    source = torch.zeros(big // 4, device=device)
    target = torch.empty_like(source)
    copied = 2.0 * big / seconds_each(lambda: target.copy_(source), device)
    torch.set_num_threads(threads)
    # Three TF32 products make one of nearly fp32's bits: the faster way is the ceiling.
    if device == "cpu":
        rate["tf32"] = rate["fp32"]  # which it does not know
    fp32 = max(rate["fp32"], rate["tf32"] / 3)
    return {"fp32 by fp32": rate["fp32"], "fp32": fp32, "tf32": rate["tf32"], "copy": copied}


def floor(work: Work, ceiling: dict[str, float]) -> float:
    """Seconds of one model's step that no program can go below on this device."""
    return max(flops(work) / ceiling[work.spec.precision], bytes_moved(work) / ceiling["copy"])
