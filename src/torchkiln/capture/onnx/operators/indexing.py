"""indexing: slices, gathers and scatters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..node import Call, Value
from ..numbers import Numbers


def _slice(call: Call) -> Value:
    value = call.inputs[0]
    rank = len(value.shape)
    if call.opset < 10:
        starts, ends, axes, steps = call.get("starts"), call.get("ends"), call.get("axes"), None
    else:
        starts, ends = call.known(1, "starts"), call.known(2, "ends")
        axes = call.known(3, "axes") if call.has(3) else None
        steps = call.known(4, "steps") if call.has(4) else None
    axes = [int(a) % rank for a in axes] if axes is not None else list(range(len(starts)))
    steps = steps or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if isinstance(value, Numbers):
            # Before the start, going backwards, Python has only None for.
            stop = None if step < 0 and end < -value.shape[axis] else end
            value = Numbers(value.values[tuple([slice(None)] * axis + [slice(start, stop, step)])], value.dtype)
        elif step > 0:
            value = torch.ops.aten.slice.Tensor(value, axis, start, end, step)
        else:
            value = _slice_backwards(value, axis, start, end, step)
    return value


def _slice_backwards(value: torch.Tensor, axis: int, start: Any, end: Any, step: int) -> torch.Tensor:
    size = value.shape[axis]
    start = start + size if start < 0 else start
    start = torch.sym_min(start, size - 1)
    end = -1 if end < -size else end + size if end < 0 else end
    return value.index_select(axis, torch.arange(start, end, step, device=value.device))


def _gather(call: Call) -> Value:
    axis, known, index = call.get("axis", 0), call.numbers(0), call.numbers(1)
    if known is not None and index is not None and index.is_concrete:
        return Numbers(np.asarray(np.take(known.values, index.values.astype(np.int64), axis), dtype=object), known.dtype)
    value = call.tensor(0)
    axis %= value.dim()
    if index is not None and index.shape == ():
        return value.select(axis, index.values.item())
    indices = call.tensor(1)
    if axis == 0 and value.dim() == 2 and isinstance(value, torch.nn.Parameter) and index is None:
        return F.embedding(indices, value)
    return value[tuple([slice(None)] * axis + [indices])]


def _gather_elements(call: Call) -> Value:
    value, axis = call.tensor(0), call.get("axis", 0)
    return torch.gather(value, axis, _wrapped(call, 1, value.shape[axis]))


def _wrapped(call: Call, position: int, size: Any) -> torch.Tensor:
    """Indices, counted from the end where they are negative."""
    known = call.numbers(position)
    indices = call.tensor(position).long()
    if known is not None and known.is_concrete and all(v >= 0 for v in known.flat()):
        return indices
    return torch.where(indices < 0, indices + size, indices)


def _gather_nd(call: Call) -> Value:
    value, indices, batch = call.tensor(0), call.tensor(1).long(), call.get("batch_dims", 0)
    depth = indices.shape[-1]
    if batch == 0:
        return value[tuple(indices.unbind(-1))]
    rows = [torch.arange(value.shape[d], device=value.device).reshape([-1 if i == d else 1 for i in range(indices.dim() - 1)]) for d in range(batch)]
    places = (*rows, *(indices[..., i] for i in range(depth)))
    return value[places]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(call: Call) -> Value:
    value, updates, axis = call.tensor(0), call.tensor(2), call.get("axis", 0)
    indices = _wrapped(call, 1, value.shape[axis])
    reduction = call.get("reduction", "none")
    if reduction == "none":
        return value.scatter(axis, indices, updates)
    return value.scatter_reduce(axis, indices, updates, _REDUCTIONS[reduction])


def _scatter_nd(call: Call) -> Value:
    value, indices, updates = call.tensor(0), call.tensor(1).long(), call.tensor(2)
    reduction = call.get("reduction", "none")
    if reduction in ("none", "add"):
        return value.index_put(tuple(indices.unbind(-1)), updates, accumulate=reduction == "add")
    depth = indices.shape[-1]
    sizes = value.shape[:depth]
    flat = torch.zeros_like(indices[..., 0])
    for d in range(depth):
        part = indices[..., d]
        flat = flat * sizes[d] + torch.where(part < 0, part + sizes[d], part)
    rows = value.reshape(math.prod(sizes), -1)
    reduced = rows.scatter_reduce(0, flat.reshape(-1, 1).expand(-1, rows.shape[1]), updates.reshape(-1, rows.shape[1]), _REDUCTIONS[reduction])
    return reduced.reshape(value.shape)


def _reverse_sequence(call: Call) -> Value:
    value, lengths = call.tensor(0), call.tensor(1)
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    steps = torch.arange(value.shape[time], device=value.device).reshape([-1 if d == time else 1 for d in range(value.dim())])
    lengths = lengths.reshape([-1 if d == batch else 1 for d in range(value.dim())])
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return torch.gather(value, time, source.expand(value.shape))


OPERATORS: dict[str, Callable[[Call], Value]] = {
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
    "ScatterND": _scatter_nd,
    "ReverseSequence": _reverse_sequence,
}
