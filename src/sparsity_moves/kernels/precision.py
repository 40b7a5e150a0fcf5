"""How products round on a GPU: in fp32, or in TF32 where that is faster (ten bits of mantissa, summed in fp32).

For the vendor's products it is a setting of the whole process, and fleets may train in threads side by side. Who
records a step has the setting alone; a recorded step keeps what it was recorded with. Who looks or measures meanwhile
does it beside the others, where the setting is fp32; the project's kernels round as each thread says.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Turns:
    """One alone, or many beside each other. Who wants to be alone goes before those who come later."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.beside = 0
        self.waiting = 0
        self.alone = False

    @contextmanager
    def one(self) -> Iterator[None]:
        with self.changed:
            self.waiting += 1
            self.changed.wait_for(lambda: not self.alone and not self.beside)
            self.waiting -= 1
            self.alone = True
        try:
            yield
        finally:
            with self.changed:
                self.alone = False
                self.changed.notify_all()

    @contextmanager
    def many(self) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.alone and not self.waiting)
            self.beside += 1
        try:
            yield
        finally:
            with self.changed:
                self.beside -= 1
                self.changed.notify_all()


_TURNS = _Turns()
_MINE = threading.local()
"""`precision`: what this thread's own kernels round to, while it has its turn."""


@contextmanager
def _turn(precision: str) -> Iterator[None]:
    """Who waited for another turn within its own would wait for ever."""
    assert not hasattr(_MINE, "precision"), "a thread that launches products has its turn already"
    _MINE.precision = precision
    try:
        yield
    finally:
        del _MINE.precision


@contextmanager
def products(precision: str) -> Iterator[None]:
    """All products, the vendor's too, in fp32 or tf32, while no other thread launches any. Not to be nested."""
    with _turn(precision), _TURNS.one():
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def beside(precision: str) -> Iterator[None]:
    """This thread's launches beside other threads': its own kernels in fp32 or tf32, the vendor's products in fp32.

    For forward passes: gradients are launched by a thread of PyTorch's, which knows nothing of it. Not to be nested.
    """
    with _turn(precision), _TURNS.many():
        yield


def ten_bits() -> bool:
    """Whether a kernel that is launched now may round its factors to ten bits, as fp16 has them, too."""
    if hasattr(_MINE, "precision"):
        return bool(_MINE.precision == "tf32")
    return bool(torch.backends.cuda.matmul.allow_tf32)  # gradients have a thread of their own
