"""Triton's interpreter, where it does other than a GPU: importing this repairs it for the process.

A number that was loaded is an array of one, which NumPy 2.4 takes for no loop's end; products of bf16 multiply the
bits as though they were integers; and fp32 becomes bf16 by cutting it off, where a GPU rounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

patch_tensor, dot, convert = (
    interpreter._patch_lang_tensor,
    interpreter.InterpreterBuilder.create_dot,
    interpreter._convert_float,
)


def with_numbers_as_ends(tensor: Any, scope: Any) -> None:
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def widened(handle: Any) -> Any:
    if handle.dtype != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def dot_of_numbers(self: Any, a: Any, b: Any, *more: Any) -> Any:
    return dot(self, widened(a), widened(b), *more)


def rounded(values: Any, given: Any, wanted: Any, mode: Any) -> Any:
    if (given, wanted) != (tl.float32, tl.bfloat16):
        return convert(values, given, wanted, mode)
    floats = torch.from_numpy(np.ascontiguousarray(values).view(np.float32).copy())
    return floats.bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(values.shape)


interpreter._patch_lang_tensor = with_numbers_as_ends
interpreter.InterpreterBuilder.create_dot = dot_of_numbers
interpreter._convert_float = rounded
