"""How products round on a GPU. It is a setting of the whole process, and fleets may train in threads side by side, so
whoever launches products holds it meanwhile; a recorded step keeps what it was recorded with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_HELD = threading.RLock()


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Products in fp32, or in tf32 where that is faster: ten bits of mantissa, summed in fp32."""
    with _HELD:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
