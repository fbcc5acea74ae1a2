"""batches: what a loader yields -> the tensors that a program is called with.

A batch is a tensor, a tuple or list (nested or not), or a dict of tensors. A dict is read by the names of the model's inputs; anything else is read
flat, in order: the first tensors are the inputs, and what follows them (a label) is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..errors import UserError
from ..inputs import Input


def read_batch(batch: Any, inputs: Sequence[Input], where: str) -> list[torch.Tensor]:
    """The tensors for ``inputs``, in their dtypes. Raises UserError naming the batch and the input that does not fit.

    Their first dimension may be any size, where it is the same for all; the others must be within the input's range.
    """
    found = _by_name(batch, inputs, where) if isinstance(batch, Mapping) else list(_flatten(batch, where))
    if len(found) < len(inputs):
        raise UserError(f"{where}: expected {len(inputs)} tensors ({', '.join(i.name for i in inputs)}), got {len(found)}")
    return [_fit(tensor, spec, where) for tensor, spec in zip(found, inputs, strict=False)]


def _by_name(batch: Mapping[Any, Any], inputs: Sequence[Input], where: str) -> list[torch.Tensor]:
    missing = ", ".join(i.name for i in inputs if i.name not in batch)
    if missing:
        raise UserError(f"{where}: expected a dict with the model's inputs, {missing} not among {', '.join(map(str, batch))}")
    return [_tensor(batch[i.name], where) for i in inputs]


def _flatten(value: Any, where: str) -> Iterator[torch.Tensor]:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        yield _tensor(value, where)
        return
    for part in value:
        if isinstance(part, (tuple, list, Mapping, torch.Tensor)) or hasattr(part, "__array__"):
            yield from _flatten(part, where)


def _tensor(value: Any, where: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if hasattr(value, "__array__"):
        return torch.as_tensor(value)
    raise UserError(f"{where}: expected a tensor, a tuple, a list or a dict of tensors, got {type(value).__name__}")


def _fit(tensor: torch.Tensor, spec: Input, where: str) -> torch.Tensor:
    shape = tuple(tensor.shape)
    bounds = list(zip(spec.min_shape, spec.max_shape, strict=True))
    if len(shape) != len(bounds) or any(not low <= size <= high for size, (low, high) in list(zip(shape, bounds, strict=True))[1:]):
        raise UserError(f"{where}: input {spec.name!r}: expected {_range_text(bounds)}, got {'x'.join(map(str, shape)) or 'a scalar'}")
    if tensor.dtype.is_floating_point != spec.dtype.is_floating_point:
        raise UserError(f"{where}: input {spec.name!r}: expected {spec.dtype}, got {tensor.dtype}")
    return tensor.to(spec.dtype)


def _range_text(bounds: Sequence[tuple[int, int]]) -> str:
    rest = [str(low) if low == high else f"{low}..{high}" for low, high in bounds[1:]]
    return "x".join(["N", *rest]) if bounds else "a scalar"


def split_batch(tensors: Sequence[torch.Tensor], inputs: Sequence[Input], where: str) -> Iterator[list[torch.Tensor]]:
    """The batch in parts whose first dimension is within the inputs' range: whole where it fits, else in parts of the largest size.

    A last part that is too small is filled up with the batch's first samples again. Raises UserError naming the batch and an input where it cannot be
    split: its tensors differ in their first dimension, or no size is within the ranges of all inputs.
    """
    misfit = next((i for t, i in zip(tensors, inputs, strict=True) if t.dim() and not _fits(t.shape[0], i)), None)
    if misfit is None:
        yield list(tensors)
        return
    sizes = [t.shape[0] for t in tensors if t.dim()]
    smallest = max(i.min_shape[0] for i in inputs if i.min_shape)
    largest = min(i.max_shape[0] for i in inputs if i.max_shape)
    if len(set(sizes)) != 1 or not 0 < smallest <= largest or not sizes[0]:
        low, high = misfit.min_shape[0], misfit.max_shape[0]
        raise UserError(
            f"{where}: input {misfit.name!r}: expected a first dimension of {low if low == high else f'{low} to {high}'}; the batch cannot be split: "
            f"the first dimensions of its tensors are {', '.join(map(str, sizes))}"
        )
    size = sizes[0]
    for start in range(0, size, largest):
        count = min(largest, size - start)
        rows = torch.arange(start, start + max(count, smallest)) % size
        yield [t[rows.to(t.device)] if t.dim() else t for t in tensors]


def _fits(size: int, spec: Input) -> bool:
    return spec.min_shape[0] <= size <= spec.max_shape[0]


def resize_batch(tensors: Sequence[torch.Tensor], shapes: Sequence[Sequence[int]]) -> list[torch.Tensor] | None:
    """The tensors with the first dimensions of ``shapes``, samples repeated or left out; None where other dimensions differ."""
    if any(tuple(t.shape[1:]) != tuple(shape[1:]) or t.dim() != len(shape) for t, shape in zip(tensors, shapes, strict=True)):
        return None
    return [t[torch.arange(shape[0], device=t.device) % t.shape[0]] if t.dim() else t for t, shape in zip(tensors, shapes, strict=True)]
