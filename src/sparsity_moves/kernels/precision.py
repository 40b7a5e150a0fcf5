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
"""`inside`: whether this thread has its turn; `precision`: what its own kernels round to, beside others."""


@contextmanager
def _turn() -> Iterator[None]:
    """Who waited for another turn within its own would wait for ever."""
    assert not getattr(_MINE, "inside", False), "a thread that launches products has its turn already"
    _MINE.inside = True
    try:
        yield
    finally:
        _MINE.inside = False


@contextmanager
def products(precision: str) -> Iterator[None]:
    """All products, the vendor's too, in fp32 or tf32, while no other thread launches any. Not to be nested."""
    with _turn(), _TURNS.one():
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
    with _turn(), _TURNS.many():
        _MINE.precision = precision
        try:
            yield
        finally:
            del _MINE.precision


def ten_bits() -> bool:
    """Whether a kernel that is launched now may round its factors to ten bits."""
    mine = getattr(_MINE, "precision", None)
    return bool(torch.backends.cuda.matmul.allow_tf32) if mine is None else mine == "tf32"
