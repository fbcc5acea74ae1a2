"""numbers: small tensors whose values are known while a graph is traced.

ONNX computes shapes with tensors: Shape, Gather, Concat, Reshape. Here those values are Python numbers and torch's SymInts in a numpy array of
objects, so that a dimension that varies stays one symbol from the input to the reshape, and torch.export sees no tensor whose data decides a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

#: Larger integer tensors are data (index tables), not shapes.
LARGEST = 1024
#: Likewise for floats, which are mostly weights.
LARGEST_FLOATS = 16


@dataclass(frozen=True)
class Numbers:
    """``values``: an object array of int, float, bool, SymInt, SymFloat or SymBool. ``dtype``: the ONNX tensor's.

    ``tensor``: the same as a tensor, where there is one already (a parameter).
    """

    values: np.ndarray
    dtype: torch.dtype
    tensor: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def is_concrete(self) -> bool:
        """Whether no value depends on a dimension that varies."""
        return all(isinstance(v, (int, float, complex)) for v in self.values.flat)

    def flat(self) -> list[Any]:
        return list(self.values.flat)


def object_array(values: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A flat sequence (or one number) as an object array; numpy is never asked to look into a SymInt."""
    if isinstance(values, np.ndarray) and values.dtype == object:
        return values if shape is None else values.reshape(shape)
    items = list(values) if isinstance(values, (list, tuple, np.ndarray)) else [values]
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    if shape is None:
        shape = (len(items),) if isinstance(values, (list, tuple, np.ndarray)) else ()
    return array.reshape(shape)


def numbers_of(tensor: torch.Tensor) -> Numbers | None:
    """The values of a constant that may be a shape, an axis or a scale; None for one that is surely data: large, complex or of 8-bit floats."""
    largest = LARGEST_FLOATS if tensor.is_floating_point() else LARGEST
    if tensor.numel() > largest or tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype.itemsize == 1):
        return None
    return Numbers(object_array(tensor.flatten().tolist(), tuple(tensor.shape)), tensor.dtype)


def to_tensor(numbers: Numbers, device: torch.device) -> torch.Tensor:
    if numbers.tensor is not None:
        return numbers.tensor
    if numbers.is_concrete:
        return torch.tensor(numbers.values.tolist(), dtype=numbers.dtype, device=device).reshape(numbers.shape)
    if numbers.shape == ():
        return torch.scalar_tensor(numbers.values.item(), dtype=numbers.dtype, device=device)
    scalars = [torch.scalar_tensor(value, dtype=numbers.dtype, device=device) for value in numbers.values.flat]
    return torch.stack(scalars).reshape(numbers.shape)


def map_numbers(function: Callable[..., Any], dtype: torch.dtype, *operands: Numbers) -> Numbers:
    """``function`` on each element of the broadcast operands, as a tensor of ``dtype`` would hold the result."""
    arrays = np.broadcast_arrays(*(operand.values for operand in operands))
    items = [cast_number(function(*values), dtype) for values in zip(*(a.flat for a in arrays), strict=True)]
    return Numbers(object_array(items, arrays[0].shape), dtype)


def cast_number(value: Any, dtype: torch.dtype) -> Any:
    """A number as an element of ``dtype`` holds it: truncated to integers, rounded to float32."""
    if dtype is torch.bool:
        return value if isinstance(value, (bool, torch.SymBool)) else value != 0
    if isinstance(value, (bool, torch.SymBool)):
        value = int(value)
    if not dtype.is_floating_point:
        return int(value) if isinstance(value, (int, float)) else torch.sym_int(value)
    if not isinstance(value, (int, float)):
        return torch.sym_float(value)
    if dtype is torch.float64:
        return float(value)
    if dtype is torch.float32:
        return float(np.float32(value))
    if dtype is torch.float16:
        return float(np.float16(value))
    return torch.tensor(float(value), dtype=dtype).item()
