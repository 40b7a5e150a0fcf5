"""Triton's interpreter, where it does other than a GPU: importing this repairs it for the process.

A number that was loaded is an array of one, which NumPy 2.4 takes for no loop's end; products of bf16 multiply the
bits as though they were integers; and fp32 becomes bf16 by cutting it off, where a GPU rounds.

A GPU does not say who touched what was not theirs; here every address must lie in a kernel's own tensors.
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


builder = interpreter.InterpreterBuilder
as_argument, call = interpreter._implicit_cvt, interpreter.GridExecutor.__call__
load, store = builder.create_masked_load, builder.create_masked_store
given: list[tuple[int, int]] = []
"""Where the tensors of the kernel now running begin and end."""


def noted(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        reach = sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
        end = value.data_ptr() + (reach + 1) * value.element_size() * bool(value.numel())
        given.append((value.data_ptr(), end))
    return as_argument(value)


def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
    given.clear()
    return call(self, *args, **kwargs)


def check(pointers: Any, mask: Any) -> None:
    touched = np.asarray(pointers.data)[np.broadcast_to(mask.data, np.shape(pointers.data))]
    inside = np.zeros(touched.shape, bool)
    for start, end in given:
        inside |= (touched >= start) & (touched < end)
    assert inside.all(), "an address outside every tensor that the kernel was given"


def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
    check(pointers, mask)
    return load(self, pointers, mask, *rest)


def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    check(pointers, mask)
    return store(self, pointers, value, mask, *rest)


interpreter._implicit_cvt = noted
interpreter.GridExecutor.__call__ = launched
builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
interpreter._patch_lang_tensor = with_numbers_as_ends
interpreter.InterpreterBuilder.create_dot = dot_of_numbers
interpreter._convert_float = rounded
