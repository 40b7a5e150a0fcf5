"""Which byte-level models are compared, and how their looks come to be stored: equal tokens, equal parameters."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from jaxtyping import UInt8
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.language.text import generated, wikitext
from sparsity_moves.language.training import LanguageSpec, train
from sparsity_moves.store.looks import Looks

Corpus = Literal["generated", "wikitext"]
FORMS: dict[str, dict[str, Any]] = {
    "dense": {"ffn": "dense"},
    "moe": {"ffn": "moe"},
    "tree": {"ffn": "tree"},
    "tree_balanced": {"ffn": "tree", "nonlinearity": "sum"},
}
"""The FFNs by the arms' names in the rest of the book."""
SETTINGS: dict[str, Any] = {
    "layers": 2,
    "width": 512,
    "tree_depth": 5,
    "length": 64,
    "steps": 600,
    "evaluate_every": 50,
    "evaluation": 4,
}
"""Of a minute a model on one core; what is not named stands at its default."""
STORIES = 20_000
HELD_OUT = 500


def texts(corpus: Corpus) -> tuple[UInt8[Tensor, " B"], UInt8[Tensor, " B"]]:
    """What is trained on, and what is measured on. Raises `UserError` where WikiText-103 is not to be had."""
    if corpus == "generated":
        return generated(0, STORIES), generated(1, HELD_OUT)
    return wikitext("train"), wikitext("validation")


def spec(arm: str, seed: int, **more: Any) -> LanguageSpec:
    """Raises `UserError` for an FFN that is not there."""
    if arm not in FORMS:
        raise UserError(f"no language model's FFN is called '{arm}'; there are {', '.join(FORMS)}")
    return LanguageSpec(seed=seed, **{**SETTINGS, **FORMS[arm], **more})


def settings(arm: str, spec: LanguageSpec, corpus: Corpus) -> dict[str, Any]:
    return {"arm": arm, "corpus": corpus, **dataclasses.asdict(spec)}


def run(
    wanted: Iterable[tuple[str, LanguageSpec]],
    where: Looks,
    corpus: Corpus = "generated",
    device: str = "cpu",
    tell: Callable[[float, str], None] = lambda share, words: None,
) -> int:
    """Train what is not there yet, one model after the other, each stored when it is done; gives how many.

    `tell` hears the share done, and of which model.
    """
    missing = [(arm, own) for arm, own in wanted if where.missing([settings(arm, own, corpus)])]
    if not missing:
        return 0
    text, held_out = texts(corpus)
    done, total = 0, sum(own.steps for _, own in missing)

    def progress(step: int) -> None:
        tell((done + step) / total, f"{arm}, seed {own.seed}")

    for arm, own in missing:
        progress(0)
        started = time.perf_counter()
        _, rows = train(own, text, held_out, device, progress)
        done += own.steps
        seconds = round(time.perf_counter() - started, 2)
        where.add([(settings(arm, own, corpus), rows)], device=device, seconds=seconds)
    return len(missing)
