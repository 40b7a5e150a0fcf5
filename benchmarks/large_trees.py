"""A model past a billion parameters with trees for FFNs: memory, times of its layers, and a few honest steps.

    python benchmarks/large_trees.py --device cuda                                   OPT-1.3B's shape, from scratch
    torchrun --nproc-per-node 2 benchmarks/large_trees.py --device cuda --shard      sharded by FSDP2, block by block
    torchrun --nproc-per-node 2 benchmarks/large_trees.py --device cpu --shard --size tiny     the same, to try it

The shape is OPT-1.3B's (24 layers, D = 2048, FFN 8192). The weights are drawn here, the text is generated here, and
it is read byte by byte: a loss says that training works, and nothing about quality. 32 trees of height 7 (8160 units,
256 of them open) are our choice: the paper's are not known. Parameters, gradients and Adam's moments are fp32; on a
GPU products are bf16. All processes together take the batch that one would.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from sparsity_moves.language import with_trees
from sparsity_moves.language.text import generated, windows
from sparsity_moves.language.training import entropy
from sparsity_moves.model import FeedForward


@dataclass(frozen=True)
class Size:
    """A model's shape."""

    layers: int
    d_model: int
    heads: int
    width: int
    trees: int
    height: int


SIZES = {
    "opt-1.3b": Size(24, 2048, 32, 8192, 32, 7),
    "tiny": Size(2, 32, 2, 64, 4, 3),
}


def build(size: Size, ffn: str, length: int, device: torch.device, seed: int = 0) -> nn.Module:
    """An OPT model at its start, drawn where it will be; every process draws the same at one seed."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=256,
        hidden_size=size.d_model,
        word_embed_proj_dim=size.d_model,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        ffn_dim=size.width,
        max_position_embeddings=length,
        dropout=0.0,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    with device:
        model: nn.Module = OPTForCausalLM(config)
        if ffn == "tree":
            nodes = (2 << size.height) - 1
            shape = FeedForward(size.trees * nodes, router="tree", tree_depth=size.height, activation="gelu")
            with_trees(model, shape)
    return model


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == "OPTDecoderLayer"]


def shard(model: nn.Module, half: bool) -> None:
    """FSDP2, block by block: a block's parameters are gathered when it computes, and let go again."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for layer in layers(model):
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def steps(
    model: nn.Module, batch: int, length: int, number: int, device: torch.device, half: bool
) -> list[dict[str, float]]:
    """AdamW on `batch` windows a step over all processes; one row a step, the loss meaned over all of them."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if batch % world:
        raise SystemExit(f"a batch of {batch} windows cannot be shared by {world} processes")
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
    rows = []
    for window in windows(generated(0, 2000), batch, length, 0, number):
        own = window.chunk(world)[rank].to(device)
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss: Tensor = entropy(model, own)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        told = loss.detach().clone()
        if world > 1:
            dist.all_reduce(told, dist.ReduceOp.SUM)
        rows.append({"loss": float(told) / world, "seconds": time.perf_counter() - started})
    return rows


@torch.no_grad()
def layer_seconds(model: nn.Module, tokens: Tensor, half: bool, repeats: int = 5) -> dict[str, float]:
    """Median forward time of the first layer's attention and FFN, in a forward pass of the whole model."""
    first = layers(model)[0]
    parts = {"attention": first.self_attn, "ffn": first.fc1}
    found: dict[str, list[float]] = {name: [] for name in parts}
    began: dict[str, float] = {}

    def now() -> float:
        if tokens.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    hooks = []
    for name, part in parts.items():
        hooks.append(part.register_forward_pre_hook(lambda *_, name=name: began.update({name: now()})))
        hooks.append(
            part.register_forward_hook(lambda *_, name=name: found[name].append(now() - began[name]))
        )
    if type(first.fc2).__name__ == "Linear":  # of a dense FFN fc1 is the first half
        hooks[-1].remove()
        hooks.append(first.fc2.register_forward_hook(lambda *_: found["ffn"].append(now() - began["ffn"])))
    for _ in range(repeats):
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
            model(tokens)
    for hook in hooks:
        hook.remove()
    return {name: sorted(times)[len(times) // 2] for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="opt-1.3b")
    parser.add_argument("--ffn", choices=("tree", "dense"), default="tree")
    parser.add_argument("--batch", type=int, default=8, help="windows a step, over all processes")
    parser.add_argument("--length", type=int, default=512, help="bytes a window")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shard", action="store_true", help="FSDP2 over the processes that torchrun starts")
    parser.add_argument("--out", type=Path, help="a file for what was found, as JSON")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --device cpu --size tiny tries the script")
    if given.shard and "RANK" not in os.environ:
        raise SystemExit(
            "--shard wants torchrun: torchrun --nproc-per-node 2 benchmarks/large_trees.py --shard ..."
        )
    rank = 0
    device = torch.device(given.device)
    if given.shard:
        if given.device == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if given.device == "cuda" else "gloo")
        rank = dist.get_rank()
    half, size = given.device == "cuda", SIZES[given.size]
    if rank == 0:
        print(f"building {given.size} with {given.ffn} FFNs …", file=sys.stderr, flush=True)
    model = build(size, given.ffn, given.length, device).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if given.shard:
        shard(model, half)
    found: dict[str, Any] = {
        "size": given.size,
        "ffn": given.ffn,
        "device": torch.cuda.get_device_name(device) if half else "cpu",
        "processes": dist.get_world_size() if given.shard else 1,
        "parameters": parameters,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "batch": given.batch,
        "length": given.length,
    }
    if not given.shard:
        tokens = next(windows(generated(1, 2000), given.batch, given.length, 0, 1)).to(device)
        found["layer_seconds"] = layer_seconds(model, tokens, half)
    found["steps"] = steps(model, given.batch, given.length, given.steps, device, half)
    if half:  # of the process that took most
        peak = torch.tensor(torch.cuda.max_memory_allocated(device), device=device)
        if given.shard:
            dist.all_reduce(peak, dist.ReduceOp.MAX)
        found["peak_bytes"] = int(peak)
    if given.shard:
        dist.destroy_process_group()
    if rank == 0:
        text = json.dumps(found, indent=1)
        print(text)
        if given.out:
            given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
