"""Text as bytes: WikiText-103 through `datasets`, or a corpus that is generated here; and windows drawn from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.tasks import generator

SPLITS = ("train", "validation", "test")
NAMES = ("Ada", "Ben", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana")
THINGS = ("apple", "book", "cup", "drum", "fern", "globe", "kite", "lamp")


def wikitext(
    split: Literal["train", "validation", "test"], source: str = "Salesforce/wikitext"
) -> UInt8[Tensor, " B"]:
    """WikiText-103 as its authors' raw text (Merity et al. 2016), in UTF-8.

    From `source`: the hub's data set, or a folder that holds a copy; its configuration `wikitext-103-raw-v1`. Raises
    `UserError` where it, or `datasets`, is not to be had.
    """
    if split not in SPLITS:
        raise UserError(f"WikiText-103 has no split '{split}'; it has {', '.join(SPLITS)}")
    try:
        import datasets
    except ImportError:
        raise UserError(
            "WikiText-103 needs the package `datasets`: pip install sparsity-moves[language]"
        ) from None
    try:
        lines = datasets.load_dataset(source, "wikitext-103-raw-v1", split=split)["text"]
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"WikiText-103 could not be loaded: {error}") from error
    return as_bytes("".join(lines))


def generated(seed: int, sentences: int) -> UInt8[Tensor, " B"]:
    """Sentences with something to remember and something to count: who gave how many of what to whom, asked again.

    "Ada has 3 cups. Ada gives 1 to Ben. Ada has 2 cups." The third sentence of each story follows from the others.
    """
    draws = torch.randint(0, 2**31, (sentences, 5), generator=generator(seed, "stories")).tolist()
    stories = []
    for who, whom, what, many, few in draws:
        giver, taker = NAMES[who % 8], NAMES[(who + 1 + whom % 7) % 8]
        had = 2 + many % 8
        gave = 1 + few % (had - 1)
        thing, left = THINGS[what % 8], had - gave
        stories.append(
            f"{giver} has {had} {thing}s. {giver} gives {gave} to {taker}. "
            f"{giver} has {left} {thing}{'s' * (left > 1)}.\n"
        )
    return as_bytes("".join(stories))


def as_bytes(text: str) -> UInt8[Tensor, " B"]:
    return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())


def windows(
    text: UInt8[Tensor, " B"], batch: int, length: int, seed: int, steps: int
) -> Iterator[Int[Tensor, "batch length"]]:
    """Random windows of neighbouring bytes, `steps` batches. Raises `UserError` for a text that is too short."""
    if len(text) < length:
        raise UserError(f"a text of {len(text)} bytes has no window of {length}")
    source = generator(seed, "windows")
    for _ in range(steps):
        start = torch.randint(0, len(text) - length + 1, (batch, 1), generator=source)
        yield text[start + torch.arange(length)].long()
