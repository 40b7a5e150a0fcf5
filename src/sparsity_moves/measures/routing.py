"""Does the router sort tokens by the operation they need?"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score

from sparsity_moves.model import Architecture, Parameters, forward
from sparsity_moves.model.tree import leaves
from sparsity_moves.tasks import Sequences


@torch.no_grad()
def router_nmi(
    architecture: Architecture, parameters: Parameters, sequences: Sequences
) -> list[float | None]:
    """Normalised mutual information of expert and operation, over all scored read-outs; None without experts.

    The expert is the one with the largest gate in the last layer; of trees, every tree's leaf in its place, and the
    mean over the trees. The null to read it against is the frozen router's value, not zero: position alone already
    tells much about the operation.
    """
    if architecture.ffn.router == "none":
        return [None] * len(sequences.tokens)
    trace = forward(architecture, parameters, sequences.tokens)
    routing = trace.layers[-1].routing
    assert routing is not None
    scored = list(architecture.task.scored)
    ffn = architecture.ffn
    chosen = leaves(ffn, routing.chosen) if ffn.trees else routing.gates.argmax(-1, keepdim=True)
    return [
        float(np.mean([normalized_mutual_info_score(o.flatten(), e.flatten()) for e in each.unbind(-1)]))
        for o, each in zip(sequences.operations[:, :, scored].cpu(), chosen[:, :, scored].cpu(), strict=True)
    ]
