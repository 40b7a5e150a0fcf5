"""When is a tree faster? One layer, against a dense one of the same total width and an MoE of the same active width.

    python benchmarks/tree_speed.py                    this machine's GPU, if it has one, and its CPU
    python benchmarks/tree_speed.py --device cuda      16 384 tokens in bf16, forward, and forward and backward
    python benchmarks/tree_speed.py --device cpu       inference in fp32, 1 to 64 tokens

D = 2048, H ≈ 8192. Dense is the vendor's products (cuBLAS; MKL in the faster of the two layouts of its weights). The
MoE has top-1 experts, routed by a learned router and computed by PyTorch's grouped product. The floor is what the
layer's own work takes at the rates that square products and copies reach in the same run; `of floor` is floor over
time.

On a GPU times are of recorded graphs, so that launches cost nobody anything; `eager` is without. On a CPU each call
has other tokens than the one before, else a tree's few rows would be in the cache each time. Every row's output is
held against its masked form before it is timed; a row that is off says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsity_moves.kernels.dispatch import dispatched_experts
from sparsity_moves.kernels.tree import floor, masked, tree_layer
from sparsity_moves.model import FeedForward, Routing
from sparsity_moves.model.feedforward import combine, hidden_units
from sparsity_moves.model.routing import by_score
from sparsity_moves.model.tree import by_path

D, H = 2048, 8192
TOKENS = 16_384
BATCHES = (1, 4, 16, 64)
TREES = "32x7,16x8,8x9,4x10"
"""Trees × depth: 8160 to 8188 units, 256 to 44 of them open for a token."""
CHECKED = 256
"""Tokens that are held against the masked form."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
VARIETY = 24
"""Batches of other tokens, on a CPU."""

Layer = tuple[str, FeedForward, Callable[..., Tensor], list[Tensor]]
"""Name, shape, function of x and the weights, the weights."""


def weights(
    shapes: dict[str, tuple[int, ...]], fan: dict[str, int], device: str, dtype: torch.dtype
) -> list[Tensor]:
    """U(±1/√fan_in), as layers start."""
    drawn = [torch.empty(s, device=device).uniform_(-1, 1) / fan[n] ** 0.5 for n, s in shapes.items()]
    return [w.to(dtype) for w in drawn]


def dense(device: str, dtype: torch.dtype, rows: bool = True) -> Layer:
    """φ(x W_in + b) W_out, with each matrix's rows, or its columns, side by side."""
    ffn = FeedForward(H, activation="gelu")
    first, second = ((H, D), (D, H)) if rows else ((D, H), (H, D))
    given = weights(
        {"w_in": first, "b": (H,), "w_out": second}, {"w_in": D, "b": D, "w_out": H}, device, dtype
    )
    if rows:
        return "dense", ffn, lambda x, i, b, o: F.linear(F.gelu(F.linear(x, i, b)), o), given
    return "dense", ffn, lambda x, i, b, o: F.gelu(torch.addmm(b, x, i)) @ o, given


def trees(number: int, depth: int, device: str, dtype: torch.dtype) -> Layer:
    ffn = FeedForward(number * ((2 << depth) - 1), router="tree", tree_depth=depth, activation="gelu")
    shapes = {"w_in": (ffn.width, D), "b": (ffn.width,), "w_out": (ffn.width, D)}
    given = weights(shapes, {"w_in": D, "b": D, "w_out": ffn.open_blocks}, device, dtype)
    return (
        f"{number} tree{'s' * (number > 1)} of depth {depth}",
        ffn,
        lambda x, *w: tree_layer(ffn, x, *w),
        given,
    )


def experts(active: int, device: str, dtype: torch.dtype) -> Layer:
    """Experts of `active` units, up to a multiple of 8; one open for a token."""
    width = -(-active // 8) * 8
    number = H // width
    ffn = FeedForward(number * width, number, 1, "learned", activation="gelu")
    names = ("router", "w_in", "b_in", "w_out", "b_out")
    shapes = ((D, number), (D, ffn.width), (ffn.width,), (ffn.width, D), (number, D))
    fan = dict(zip(names, (D, D, D, width, width), strict=True))
    given = weights(dict(zip(names, shapes, strict=True)), fan, device, dtype)

    def layer(x: Tensor, *w: Tensor) -> Tensor:
        p = {name: t[None] for name, t in zip(names, w, strict=True)}
        routing = by_score(ffn, p["router"], x[None, None])
        return dispatched_experts(ffn, p, "", x[None], routing)[0]

    return f"MoE, {number} × {width}", ffn, layer, given


def reference(ffn: FeedForward, x: Tensor, given: list[Tensor]) -> Tensor:
    """The masked form, of the same numbers in fp32."""
    if ffn.trees:
        return masked(ffn, x.float(), *(w.float() for w in given))
    routing: Routing = by_score(
        ffn, given[0][None], x[None, None]
    )  # bf16 may choose another expert than fp32
    p = {n: w[None].float() for n, w in zip(("w_in", "b_in", "w_out", "b_out"), given[1:], strict=True)}
    hidden = hidden_units(ffn, p, "", x[None].float())
    return combine(ffn, p, "", hidden, routing.gates.flatten(1, 2).float())[0]


def off(layer: Layer, x: Tensor) -> float:
    """Largest difference from the masked form, over the largest number; of tokens that take the same path.

    A response that is zero up to rounding can send a token another way, which is no error: at most one in a hundred.
    """
    name, ffn, function, given = layer
    if name == "dense":
        return 0.0
    x = x[:CHECKED]
    found, expected = function(x, *given).float(), reference(ffn, x, given)
    each = (found - expected).abs().amax(1) / expected.abs().max()
    return float(each.sort().values[: len(x) - len(x) // 100].max())


def touched(ffn: FeedForward, x: Tensor, given: list[Tensor]) -> int | None:
    """Units of a forest that some token opens."""
    if not ffn.trees:
        return None
    p = {"w_in": given[0].float().T[None], "b_in": given[1].float()[None]}
    seen = torch.zeros(ffn.width, dtype=torch.bool, device=x.device)
    for part in x.float().split(1024):
        seen |= by_path(ffn, hidden_units(ffn, p, "", part[None])[:, :, None]).chosen[0, :, 0].any(0)
    return int(seen.sum())


# --- Time -----------------------------------------------------------------------------------------------------------


def on_gpu(work: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Medians of a recorded graph's time and of the plain call's."""

    def median(call: Callable[[], object]) -> float:
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 5:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            after.record()
            torch.cuda.synchronize()
            times.append(before.elapsed_time(after) / 1e3)
        return statistics.median(times)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    eager = median(work)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return median(graph.replay), eager


def on_cpu(works: list[Callable[[], object]], seconds: float) -> float:
    """Median time of calls that take turns."""
    for work in works:
        work()
    times, end = [], time.perf_counter() + seconds
    for work in itertools.cycle(works):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
        if started > end and len(times) >= 5:
            return statistics.median(times)
    raise AssertionError


def rates(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a square product, and bytes/s of a copy (read and written): the best of many."""
    size, big = (8192, 2**30) if device == "cuda" else (2048, 2**28)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(big // 4, device=device)
    target = torch.empty_like(source)

    def best(call: Callable[[], object]) -> float:
        found = []
        for _ in range(12):
            started = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
        return min(found)

    return 2.0 * size**3 / best(lambda: a @ b), 2.0 * big / best(lambda: target.copy_(source))


# --- Rows -----------------------------------------------------------------------------------------------------------


def gpu_rows(
    shapes: list[tuple[int, int]], seconds: float, ceiling: tuple[float, float]
) -> list[dict[str, Any]]:
    device, dtype, rows = "cuda", torch.bfloat16, []
    x = torch.randn(TOKENS, D, device=device, dtype=dtype)
    upstream = torch.randn_like(x)
    makers: list[Callable[[], Layer]] = [lambda: dense(device, dtype)]
    for number, depth in shapes:
        makers.append(lambda n=number, d=depth: trees(n, d, device, dtype))
        makers.append(lambda n=number, d=depth: experts(n * (d + 1), device, dtype))
    base: dict[bool, float] = {}
    for make in makers:
        layer = make()
        name, ffn, function, given = layer
        say(f"{name} on {torch.cuda.get_device_name()}")
        with torch.no_grad():
            error, opened = off(layer, x), touched(ffn, x, given)
        for backward in (False, True):
            inputs = [t.detach().requires_grad_(backward) for t in (x, *given)]

            def work(
                inputs: list[Tensor] = inputs, backward: bool = backward, function: Any = function
            ) -> Any:
                out = function(*inputs)
                if not backward:
                    return out
                # What only balance would train, a renormalised router, has none.
                return torch.autograd.grad(out, inputs, upstream, allow_unused=True)

            least = floor(ffn, TOKENS, D, 2, backward=backward, touched=opened).seconds(*ceiling)
            with torch.set_grad_enabled(backward):
                seconds_each, eager = on_gpu(work, seconds)
            base.setdefault(backward, seconds_each)
            what = "forward and backward" if backward else "forward"
            row = {"device": "cuda", "tokens": TOKENS, "what": what, "eager": eager, "off": error}
            rows.append(row | line(name, ffn, seconds_each, base[backward], least, error, dtype))
        del layer, given, inputs, work
        torch.cuda.empty_cache()
    return rows


def cpu_rows(
    shapes: list[tuple[int, int]], seconds: float, ceiling: tuple[float, float]
) -> list[dict[str, Any]]:
    device, dtype, rows = "cpu", torch.float32, []
    layers = [[dense(device, dtype, rows) for rows in (True, False)]]
    for number, depth in shapes:
        layers += [[trees(number, depth, device, dtype)], [experts(number * (depth + 1), device, dtype)]]
    for tokens in BATCHES:
        base = None
        many = [torch.randn(tokens, D) for _ in range(VARIETY)]
        for forms in layers:
            name, ffn, _, given = forms[0]
            say(f"{name}, {tokens} token{'s' * (tokens > 1)} on the CPU")
            error = max(off(form, torch.cat(many)) for form in forms)
            opened = touched(ffn, many[0], given)
            times = [on_cpu([lambda x=x, f=form: f[2](x, *f[3]) for x in many], seconds) for form in forms]
            base = base or min(times)
            least = floor(ffn, tokens, D, 4, touched=opened).seconds(*ceiling)
            row = {"device": "cpu", "tokens": tokens, "what": "forward", "eager": None, "off": error}
            rows.append(row | line(name, ffn, min(times), base, least, error, dtype))
    return rows


def line(
    name: str, ffn: FeedForward, seconds: float, base: float, least: float, error: float, dtype: torch.dtype
) -> dict[str, Any]:
    return {
        "layer": name,
        "width": ffn.width,
        "active": ffn.expert_width * ffn.open_blocks,
        "seconds": seconds,
        "times_dense": base / seconds,
        "of_floor": least / seconds,
        "agrees": error <= TOLERANCE[dtype],
    }


def say(text: str) -> None:
    print(f"  {text} …", file=sys.stderr, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """All rows, a line each, under one head for each device and kind of work."""
    head = f"{'':<24}{'units':>7}{'active':>9}{'ms':>11}{'eager':>9}{'× dense':>9}{'of floor':>10}"
    lines, last = [], None
    for row in rows:
        key = (row["device"], row["tokens"], row["what"])
        if key != last:
            lines += [
                "",
                f"{row['device']}, {row['tokens']:,} token{'s' * (row['tokens'] > 1)}, {row['what']}",
                head,
            ]
            last = key
        eager = "" if row["eager"] is None else f"{row['eager'] * 1e3:.3f}"
        lines.append(
            f"{row['layer']:<24}{row['width']:>7}{row['active'] / row['width']:>9.2%}{row['seconds'] * 1e3:>11.3f}"
            f"{eager:>9}{row['times_dense']:>9.2f}{row['of_floor']:>10.1%}"
            + ("" if row["agrees"] else f"   OUTPUT DIFFERS by {row['off']:.1e}")
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="one of them; both unless given")
    parser.add_argument("--trees", default=TREES, help=f"trees × depth, {TREES} unless given")
    parser.add_argument("--seconds", type=float, default=0.4, help="a measurement, 0.4 unless given")
    parser.add_argument("--out", type=Path, help="a file for the rows, as JSON")
    given = parser.parse_args()
    shapes = [(int(number), int(depth)) for number, depth in (s.split("x") for s in given.trees.split(","))]
    devices = [given.device] if given.device else ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    torch.manual_seed(0)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    found |= {"threads": torch.get_num_threads(), "rates": {}, "rows": []}
    with torch.no_grad():
        for device in devices:
            dtype = torch.bfloat16 if device == "cuda" else torch.float32
            ceiling = rates(device, dtype)
            name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {found['threads']} threads"
            found["rates"][device] = {"name": name, "flops": ceiling[0], "bytes": ceiling[1]}
            print(
                f"{name}: {ceiling[0] / 1e12:.3g} TFLOP/s in products, {ceiling[1] / 1e9:.3g} GB/s in copies"
            )
            measured = gpu_rows if device == "cuda" else cpu_rows
            found["rows"] += measured(shapes, given.seconds, ceiling)
    found["load"] = round(
        os.getloadavg()[0], 2
    )  # of the last minute: more than the threads is somebody else's
    # One table: by kind of work, dense first.
    rows = found["rows"]
    kinds = list(dict.fromkeys((r["device"], r["tokens"], r["what"]) for r in rows))
    found["rows"] = sorted(rows, key=lambda r: kinds.index((r["device"], r["tokens"], r["what"])))
    print(table(found["rows"]))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
