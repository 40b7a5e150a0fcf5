"""The arms: every FFN that the book compares, at widths matched as the paper matches them.

`width` is the dense arm's. Matched in total: a GLU has three matrices for two, so two thirds of the width; an
MoE splits the width over its experts. Narrow is one expert's width without the others. `_active` arms match a
token's open units instead: every expert is as wide as the whole layer it stands for.

Trees of depth 3 open 4 of 15 nodes, so those that fit the dense width have nearly as many units, in total and open
for a token, as a four-expert MoE. At another depth `tree` keeps the total, and `tree_active` the open units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sparsity_moves.errors import UserError
from sparsity_moves.names import Profile, TaskName
from sparsity_moves.training import Spec, settings

BALANCE = 0.01
"""Weight of the load-balance loss in the paper."""


def glu_width(width: int) -> int:
    """The even width at which a GLU has just under the dense layer's parameters: 256 → 170, 512 → 340."""
    return max(2, width * 2 // 3 // 2 * 2)


def _moe(width: int, experts: int, top_k: int, **more: Any) -> dict[str, Any]:
    return {
        "width": width,
        "experts": experts,
        "top_k": top_k,
        "router": "learned",
        "balance_weight": BALANCE,
        **more,
    }


def _moe_glu(width: int, experts: int, top_k: int, **more: Any) -> dict[str, Any]:
    return _moe(glu_width(width) // experts * experts, experts, top_k, gated=True, **more)


def _tree(width: int, depth: int, **more: Any) -> dict[str, Any]:
    """As many trees as the width holds, at least one."""
    nodes = 2 ** (depth + 1) - 1
    return {"width": max(1, width // nodes) * nodes, "router": "tree", "tree_depth": depth, **more}


def _tree_active(width: int, depth: int) -> dict[str, Any]:
    """As many trees as have this width on their paths, at least one."""
    return _tree(width // (depth + 1) * (2 ** (depth + 1) - 1), depth)


FROZEN, SWITCH = {"router": "frozen"}, {"gate": "switch"}

ARMS: dict[str, Callable[..., dict[str, Any]]] = {
    "dense": lambda w, e, k: {"width": w},
    "narrow": lambda w, e, k: {"width": w // e},
    "glu": lambda w, e, k: {"width": glu_width(w), "gated": True},
    "glu_bilinear": lambda w, e, k: {"width": glu_width(w), "gated": True, "activation": "none"},
    "moe": _moe,
    "moe_frozen": lambda w, e, k: _moe(w, e, k, **FROZEN),
    "moe_switch": lambda w, e, k: _moe(w, e, k, **SWITCH),
    "moe_switch_frozen": lambda w, e, k: _moe(w, e, k, **SWITCH, **FROZEN),
    "moe_hash": lambda w, e, k: _moe(w, e, 1, router="hash", balance_weight=0.0),
    "moe_hash_context": lambda w, e, k: _moe(w, e, 1, router="hash_context", balance_weight=0.0),
    "moe_unbalanced": lambda w, e, k: _moe(w, e, k, balance_weight=0.0),
    "moe_switch_unbalanced": lambda w, e, k: _moe(w, e, k, **SWITCH, balance_weight=0.0),
    "moe_top2": lambda w, e, k: _moe(w, e, 2),
    "moe_top2_frozen": lambda w, e, k: _moe(w, e, 2, **FROZEN),
    "moe_active": lambda w, e, k: _moe(w * e, e, k),
    "moe_glu": _moe_glu,
    "moe_glu_frozen": lambda w, e, k: _moe_glu(w, e, k, **FROZEN),
    "moe_glu_active": lambda w, e, k: _moe(glu_width(w) * e, e, k, gated=True),
    "tree": lambda w, e, k, depth=3: _tree(w, depth),
    "tree_balanced": lambda w, e, k, depth=3: _tree(w, depth, nonlinearity="sum"),
    "tree_active": lambda w, e, k, depth=3: _tree_active(w // e * k, depth),
}
TREES = ("tree", "tree_balanced", "tree_active")


def arm(
    name: str,
    profile: Profile,
    task: TaskName,
    seed: int,
    *,
    experts: int = 4,
    width: int | None = None,
    top_k: int = 1,
    tree_depth: int | None = None,
    **overrides: Any,
) -> Spec:
    """One arm's run. `width` is the dense arm's (the profile's unless given); `overrides` are fields of `Spec`.

    `tree_depth`, for arms of trees, decides how many of them the width holds.

    Raises `UserError` for an unknown arm, and for settings that do not fit together (experts that do not divide
    the width, say).
    """
    if name not in ARMS:
        raise UserError(f"no arm is called '{name}'; there are {', '.join(ARMS)}")
    base = settings(profile, task)
    whole = base["width"] if width is None else width
    if experts < 1 or whole < 1:
        raise UserError(f"experts and width are positive numbers, not {experts} and {whole}")
    if whole % experts:
        raise UserError(f"{experts} experts do not divide a width of {whole}")
    if tree_depth is not None and (name not in TREES or tree_depth < 1):
        raise UserError(f"'{name}' has no trees of depth {tree_depth}: arms of trees are {', '.join(TREES)}")
    own = ARMS[name](whole, experts, top_k, *(() if tree_depth is None else (tree_depth,)))
    if own.get("experts") == 1:  # one expert is the dense layer, and its router has nothing to choose
        own |= {"router": "none", "gate": "renormalised", "balance_weight": 0.0}
    if unknown := sorted(set(overrides) - {field.name for field in dataclasses.fields(Spec)}):
        raise UserError(f"a run has no setting called '{unknown[0]}'")
    return Spec(**{**base, "seed": seed, **own, **overrides})
