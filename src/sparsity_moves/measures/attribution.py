"""Direct logit attribution: logits = W_U (x_embed + x_attn + x_ffn), so each term has a share of each logit."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.model import Architecture, Parameters, Trace, forward
from sparsity_moves.tasks import Sequences


def correct_logit_terms(
    architecture: Architecture, parameters: Parameters, trace: Trace, targets: Tensor
) -> dict[str, Float[Tensor, "M N R"]]:
    """What embedding, attention and FFN add to the correct logit; the three sum to it exactly.

    With a norm at the output its scale is held at what the whole residual stream gives.
    """
    unembed = (
        parameters["embed"] if architecture.task.tied else parameters["unembed"].transpose(1, 2)
    )  # (M, C, D)
    direction = unembed[
        torch.arange(len(unembed), device=targets.device)[:, None, None], targets
    ]  # (M, N, R, D)
    if "norm" in parameters:
        epsilon = torch.finfo(trace.residual.dtype).eps
        size = (trace.residual.square().mean(-1, keepdim=True) + epsilon).rsqrt()
        direction = direction * size * parameters["norm"][:, None, None]
    terms = {
        "embedding": trace.embedding,
        "attention": torch.stack([layer.attention for layer in trace.layers]).sum(0),
        "ffn": torch.stack([layer.ffn for layer in trace.layers]).sum(0),
    }
    return {name: (term * direction).sum(-1) for name, term in terms.items()}


@torch.no_grad()
def attention_share(
    architecture: Architecture, parameters: Parameters, sequences: Sequences
) -> list[float | None]:
    """|attention| / (|attention| + |FFN|) of the correct logit, embedding left out (as the authors' code does).

    Both magnitudes are means over inputs and scored read-outs. Defined for one layer: with more, lower layers'
    outputs exist at other positions too, so the share is None there.
    """
    if architecture.depth > 1:
        return [None] * len(sequences.tokens)
    trace = forward(architecture, parameters, sequences.tokens)
    terms = correct_logit_terms(architecture, parameters, trace, sequences.targets)
    scored = list(architecture.task.scored)
    attention, ffn = (terms[name][:, :, scored].abs().double().mean((1, 2)) for name in ("attention", "ffn"))
    share: list[float | None] = (attention / (attention + ffn)).tolist()
    return share
