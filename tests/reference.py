"""The model a second time, slowly: one model, one loop over tokens, one over the experts a token chose.

Written from the fact sheet's equations. It shares no line with the package but the names of the parameters:
weights act from the right, `attention.qkv` holds the columns of q, then k, then v, and heads lie side by side.
Every position is computed and answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Edits = dict[str, Callable[[Tensor], Tensor]]

PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "none": lambda x: x,
}


@dataclass
class Answer:
    """What one model computed for B sequences of T tokens."""

    logits: Tensor  # (B, T, C)
    residual: Tensor  # (B, T, D), after the last layer, before the output norm
    parts: dict[str, Tensor]  # by the package's names of components; all positions
    routed: list[tuple[Tensor, Tensor]] = field(
        default_factory=list
    )  # a layer: probabilities, 0/1 choices (B, T, E)

    def balance(self, positions: Iterable[int]) -> Tensor:
        """E Σ f_i P_i over the tokens at these positions, summed over layers."""
        at = list(positions)
        total = self.logits.new_zeros(())
        for probabilities, chosen in self.routed:
            p, c = probabilities[:, at].flatten(0, 1), chosen[:, at].flatten(0, 1)
            experts = p.shape[1]
            for i in range(experts):
                total = total + experts * (c[:, i].sum() / c.sum()) * p[:, i].sum() / len(p)
        return total


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + torch.finfo(x.dtype).eps) * scale


def hash_expert(architecture, table: Tensor, sequence: list[int], position: int) -> int:
    """The expert that hash routing gives one token of one sequence."""
    experts = architecture.ffn.experts
    if architecture.ffn.router == "hash":
        return int(table[sequence[position]])
    codes = [int(table[i, symbol]) for i, symbol in enumerate(sequence)]
    if architecture.task.causal:
        return sum(codes[: position + 1]) % experts
    return (sum(codes) + codes[position]) % experts


def walk(ffn, p: dict[str, Tensor], f: str, token: Tensor) -> list[int]:
    """The units that a token uses: those always on, and of each tree, from its root, down to a leaf."""
    units = list(range(ffn.always_on))
    for root in range(ffn.always_on, ffn.width, 2 ** (ffn.tree_depth + 1) - 1):
        node = 0
        for _ in range(ffn.tree_depth + 1):
            unit = root + node
            units.append(unit)
            right = (
                float(token.detach() @ p[f + ".w_in"][:, unit].detach() + p[f + ".b_in"][unit].detach()) > 0
            )
            node = 2 * node + (2 if right else 1)
    return units


def forward(architecture, p: dict[str, Tensor], tokens: Tensor, edits: Edits | None = None) -> Answer:
    """All positions of all sequences through one model. An edit sees (B, T, ...), as in `Answer.parts`."""
    edits, parts, routed = edits or {}, {}, []
    ffn, heads = architecture.ffn, architecture.heads
    batch, length = tokens.shape
    d = architecture.d_model
    d_head = d // heads

    def part(name: str, value: Tensor) -> Tensor:
        parts[name] = edits[name](value) if name in edits else value
        return parts[name]

    def norm(name: str, x: Tensor) -> Tensor:
        return rms_norm(x, p[name]) if architecture.norm == "rms" else x

    x = part(
        "embedding", torch.stack([torch.stack([p["embed"][t] for t in s]) for s in tokens]) + p["position"]
    )
    for layer in range(architecture.depth):
        a, f = f"{layer}.attention", f"{layer}.ffn"

        # Attention, a head at a time.
        z = norm(a + ".norm", x)
        q, k, v = (z.reshape(-1, d) @ p[a + ".qkv"]).reshape(batch, length, 3 * d).split(d, dim=-1)
        patterns, mixtures = [], []
        for h in range(heads):
            own = slice(h * d_head, (h + 1) * d_head)
            scores = torch.bmm(q[:, :, own], k[:, :, own].transpose(1, 2)) / math.sqrt(d_head)
            if architecture.task.causal:
                scores = scores + torch.full((length, length), -math.inf, dtype=x.dtype).triu(1)
            patterns.append(torch.exp(scores - scores.amax(-1, keepdim=True)))
            patterns[-1] = patterns[-1] / patterns[-1].sum(-1, keepdim=True)
        pattern = part(f"{layer}.pattern", torch.stack(patterns, 1))  # (B, H, T, T)
        for h in range(heads):
            mixtures.append(torch.bmm(pattern[:, h], v[:, :, h * d_head : (h + 1) * d_head]))
        mixed = part(f"{layer}.heads", torch.stack(mixtures, 2)).reshape(batch * length, d)
        x = x + part(a, (mixed @ p[a + ".out"] + p[a + ".out_bias"]).reshape(batch, length, d))

        # The FFN, a token at a time, and only the experts that it chose.
        z = norm(f + ".norm", x)
        hidden, gates, probabilities, chosen = [], [], [], []
        for b in range(batch):
            for t in range(length):
                token = z[b, t][None]
                if ffn.router == "none":
                    weight = {0: torch.ones((), dtype=x.dtype)}
                elif ffn.router == "tree":
                    weight = {u: torch.ones((), dtype=x.dtype) for u in walk(ffn, p, f, token[0])}
                elif ffn.router.startswith("hash"):
                    weight = {
                        hash_expert(architecture, p[f + ".hash"], tokens[b].tolist(), t): torch.ones(
                            (), dtype=x.dtype
                        )
                    }
                else:
                    scores = (token @ p[f + ".router"])[0]
                    e = torch.exp(scores - scores.max())
                    share = e / e.sum()
                    best = sorted(range(ffn.experts), key=lambda i: -scores[i].item())[: ffn.top_k]
                    weight = {i: share[i] for i in best}
                    if ffn.gate == "renormalised" and ffn.top_k == 1:
                        weight = {i: 1 + 0 * w for i, w in weight.items()}  # p / p, without its rounding
                    elif ffn.gate == "renormalised":
                        whole = sum(weight.values())
                        weight = {i: w / whole for i, w in weight.items()}
                    probabilities.append(share)
                    chosen.append(torch.tensor([float(i in best) for i in range(ffn.experts)], dtype=x.dtype))
                units = []
                for i in range(ffn.blocks):
                    own = slice(i * ffn.expert_width, (i + 1) * ffn.expert_width)
                    if i not in weight and f"{layer}.gates" not in edits:
                        units.append(torch.zeros(ffn.expert_width, dtype=x.dtype))
                        continue
                    if ffn.gated:
                        h = PHI[ffn.activation](token @ p[f + ".w_in"][:, own]) * (
                            token @ p[f + ".w_up"][:, own]
                        )
                    else:
                        h = token @ p[f + ".w_in"][:, own] + p[f + ".b_in"][own]
                        if ffn.nonlinearity == "node" or i < ffn.always_on:
                            h = PHI[ffn.activation](h)
                    units.append(h[0])
                hidden.append(torch.cat(units))
                gates.append(
                    torch.stack([weight.get(i, torch.zeros((), dtype=x.dtype)) for i in range(ffn.blocks)])
                )
        hidden = part(f"{layer}.hidden", torch.stack(hidden).reshape(batch, length, -1))
        gates = part(f"{layer}.gates", torch.stack(gates).reshape(batch, length, -1))
        rows = []
        for b in range(batch):
            for t in range(length):
                y = torch.zeros(1, d, dtype=x.dtype)
                sums = {}
                for i in range(ffn.blocks):
                    if gates[b, t, i] == 0:
                        continue
                    own = slice(i * ffn.expert_width, (i + 1) * ffn.expert_width)
                    expert = hidden[b, t, own][None] @ p[f + ".w_out"][own]
                    if not ffn.gated and ffn.router != "tree":
                        expert = expert + p[f + ".b_out"][i]
                    expert = gates[b, t, i] * expert
                    if ffn.nonlinearity == "node" or i < ffn.always_on:
                        y = y + expert
                    else:
                        tree = 0 if ffn.nonlinearity == "sum" else (i - ffn.always_on) // ffn.nodes
                        sums[tree] = sums.get(tree, 0) + expert
                for s in sums.values():
                    y = y + PHI[ffn.activation](s)
                rows.append(y[0])
        x = x + part(f, torch.stack(rows).reshape(batch, length, d))
        if probabilities:
            shape = (batch, length, ffn.experts)
            routed.append((torch.stack(probabilities).reshape(shape), torch.stack(chosen).reshape(shape)))

    unembed = p["embed"].T if architecture.task.tied else p["unembed"]
    logits = norm("norm", x).reshape(-1, d) @ unembed
    return Answer(logits.reshape(batch, length, -1), x, parts, routed)


def cross_entropy(architecture, logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of −log p(right answer) over all sequences and read-outs."""
    total = logits.new_zeros(())
    for r, position in enumerate(architecture.task.read_out):
        at = logits[:, position]
        total = total + (torch.logsumexp(at, -1) - at.gather(1, targets[:, r : r + 1])[:, 0]).sum()
    return total / targets.numel()


def balanced_positions(spec) -> tuple[int, ...]:
    task = spec.architecture.task
    return tuple(range(task.length)) if spec.balance_positions == "all" else task.read_out


def train(
    spec, p: dict[str, Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[list[float], dict[str, Tensor]]:
    """A plain loop over batches: cross-entropy before each update, and the parameters after the last."""
    architecture = spec.architecture
    frozen = architecture.ffn.router == "frozen"
    p = {n: t.clone() for n, t in p.items()}
    trained = [n for n, t in p.items() if t.is_floating_point() and not (frozen and n.endswith("router"))]
    for name in trained:
        p[name].requires_grad_()
    leaves = [p[name] for name in trained]
    optimiser = torch.optim.AdamW(
        leaves,
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        weight_decay=spec.weight_decay,
        foreach=False,
    )
    losses = []
    for tokens, targets in batches:
        answer = forward(architecture, p, tokens)
        entropy = cross_entropy(architecture, answer.logits, targets)
        loss = entropy
        if spec.balance_weight:
            loss = loss + spec.balance_weight * answer.balance(balanced_positions(spec))
        optimiser.zero_grad()
        loss.backward()
        if spec.clip:
            torch.nn.utils.clip_grad_norm_(leaves, spec.clip)
        optimiser.step()
        losses.append(entropy.item())
    return losses, {n: t.detach() for n, t in p.items()}
