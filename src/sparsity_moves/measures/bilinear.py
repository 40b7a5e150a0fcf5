"""A GLU as a tensor: which frequencies are in its weights?

Without the gate's nonlinearity a GLU is exactly bilinear, y_i = Σ_jk T_ijk x_j x_k with
T_ijk = Σ_m W_out[m,i] W_in[j,m] W_up[k,m] (Pearce et al. 2024); with one the tensor approximates it. The right
singular vectors of T as an output × input² matrix are the quadratic forms that it writes; each is mapped through the
token embedding to a table over (a, b), and that averaged over a + b.

The tensor itself (D³ numbers) is never made: T Tᵀ = W_outᵀ (G ∘ U) W_out with the Gram matrices of W_in and W_up.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.measures.fourier import TOP, by_sum, decomposed, modulus, spectrum
from sparsity_moves.measures.tidy import Columns, Subject, joined, tidy


def tensor(
    w_in: Float[Tensor, "M D W"], w_up: Float[Tensor, "M D W"], w_out: Float[Tensor, "M W D"]
) -> Float[Tensor, "M D D D"]:
    """T, for widths at which it fits: what a bilinear layer does to x with itself."""
    return torch.einsum("bmi,bjm,bkm->bijk", w_out, w_in, w_up)


def singular_forms(
    w_in: Float[Tensor, "M D W"], w_up: Float[Tensor, "M D W"], w_out: Float[Tensor, "M W D"], top: int
) -> tuple[Float[Tensor, "M S"], Float[Tensor, "M S W"]]:
    """The largest singular values of T, and the right singular vectors as weights of the W forms w_in ⊗ w_up.

    Vector s of model m is Σ_w weights[m, s, w] · w_in[m, :, w] w_up[m, :, w]ᵀ.
    """
    gram = (w_in.transpose(1, 2) @ w_in) * (w_up.transpose(1, 2) @ w_up)
    square, left = decomposed(w_out.transpose(1, 2) @ gram @ w_out)
    square, left = square.flip(1)[:, :top].clamp(min=0), left.flip(2)[:, :, :top]
    values = square.sqrt()
    weights = (w_out @ left).transpose(1, 2) / values.clamp(min=1e-30)[..., None]
    return values, weights


@torch.no_grad()
def bilinear(subject: Subject) -> list[Columns]:
    """Fourier concentration of a GLU's strongest quadratic forms, last layer.

    Columns: `site` (weights), `expert` (None is the whole layer as one tensor; a dense GLU has no other), `index`
    (rank of the singular value), `full`, `paired`, `frequency` (see `fourier`) and `share` (of T's squared norm).

    Raises `UserError` for a layer without a gate. Source: Smithline & Mascioli 2026, weight-based Fourier analysis;
    the published number is the mean over the first ten, and for an MoE over the experts.
    """
    p, ffn, parameters = modulus(subject), subject.architecture.ffn, subject.parameters
    if not ffn.gated:
        raise UserError("only a gated layer is a bilinear tensor")
    name = f"{subject.architecture.depth - 1}.ffn."
    w_in, w_up, w_out = (parameters[name + kind].double() for kind in ("w_in", "w_up", "w_out"))
    embedding = parameters["embed"][:, :p].double()
    tables = []
    for expert in (None, *(range(ffn.experts) if ffn.experts > 1 else ())):
        units = (
            slice(None)
            if expert is None
            else slice(expert * ffn.expert_width, (expert + 1) * ffn.expert_width)
        )
        block = w_in[..., units], w_up[..., units], w_out[:, units]
        top = min(TOP, block[0].shape[2], w_out.shape[2])
        values, weights = singular_forms(*block, top)
        first, second = embedding @ block[0], (embedding @ block[1]).transpose(1, 2)
        rows = by_sum(p, embedding.device)
        over_sum = torch.stack(  # one form at a time: a table over all pairs each
            [((first * weights[:, s, None]) @ second).flatten(1)[:, rows].mean(2) for s in range(top)], 2
        )
        found = spectrum(over_sum)
        norm = ((block[0].transpose(1, 2) @ block[0]) * (block[1].transpose(1, 2) @ block[1])).mul(
            block[2] @ block[2].transpose(1, 2)
        )
        share = values.square() / norm.sum((1, 2))[:, None]
        axes: dict[Any, Any] = {"site": ["weights"], "expert": [expert], "index": range(top)}
        columns = {"full": found.full, "paired": found.paired, "frequency": found.frequency, "share": share}
        tables.append(tidy(axes, **{n: v[:, None, None] for n, v in columns.items()}))
    return joined(*tables)
