"""reduce: reductions over axes, the largest elements, running sums."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch

from ..node import Call, Value
from ..numbers import Numbers, cast_number, object_array


def _reduction(
    function: Callable[[torch.Tensor, list[int], bool], torch.Tensor], number: Callable[[Any, Any], Any] | None = None
) -> Callable[[Call], Value]:
    def run(call: Call) -> Value:
        keep = bool(call.get("keepdims", 1))
        rank = len(call.inputs[0].shape)
        axes = call.axes(1, rank)
        if not axes:
            if call.get("noop_with_empty_axes", 0):
                return function(call.tensor(0).unsqueeze(0), [0], False)
            axes = list(range(rank))
        numbers = call.numbers(0)
        if number is not None and numbers is not None and numbers.tensor is None:
            return _reduce_numbers(numbers, number, axes, keep)
        value = call.tensor(0)
        return function(value, axes, keep) if rank else function(value.reshape(1), [0], False)

    return run


def _reduce_numbers(numbers: Numbers, number: Callable[[Any, Any], Any], axes: list[int], keep: bool) -> Value:
    values = numbers.values
    for axis in sorted(axes, reverse=True):
        rows = np.moveaxis(values, axis, 0)
        total = object_array([reduce(number, column) for column in rows.reshape(rows.shape[0], -1).T], rows.shape[1:])
        values = np.expand_dims(total, axis) if keep else total
    return Numbers(object_array([cast_number(v, numbers.dtype) for v in values.flat], values.shape), numbers.dtype)


def _mean(value: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    if value.is_floating_point():
        return value.mean(axes, keepdim=keep)
    total = value.sum(axes, keepdim=keep)
    return torch.div(total, value.numel() // total.numel(), rounding_mode="trunc").to(value.dtype)


def _sum(value: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return value.sum(axes, keepdim=keep, dtype=value.dtype)


def _product(value: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        value = value.prod(axis, keepdim=keep, dtype=value.dtype)
    return value


def _largest(value: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return value.any(axes, keepdim=keep) if value.dtype is torch.bool else torch.amax(value, axes, keepdim=keep)


def _smallest(value: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return value.all(axes, keepdim=keep) if value.dtype is torch.bool else torch.amin(value, axes, keepdim=keep)


def _l2(value: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return _sum(value * value, axes, keep).sqrt()


def _arg(function: Callable[..., torch.Tensor]) -> Callable[[Call], Value]:
    def run(call: Call) -> Value:
        value, axis, keep = call.tensor(0), call.get("axis", 0), bool(call.get("keepdims", 1))
        if call.get("select_last_index", 0):
            size = value.shape[axis]
            return size - 1 - function(value.flip(axis), axis, keepdim=keep)
        return function(value, axis, keepdim=keep)

    return run


def _top_k(call: Call) -> Value:
    count = call.known(1, "k")[0] if call.opset >= 10 else call.get("k")
    axis, largest, ordered = call.get("axis", -1), bool(call.get("largest", 1)), bool(call.get("sorted", 1))
    return tuple(torch.topk(call.tensor(0), count, axis, largest, ordered))


def _cumulative_sum(call: Call) -> Value:
    value, axis = call.tensor(0), int(call.known(1, "axis")[0])
    dtype = value.dtype
    if call.get("reverse", 0):
        value = value.flip(axis)
    total = torch.cumsum(value, axis, dtype=dtype)
    if call.get("exclusive", 0):
        total = total - value
    return total.flip(axis) if call.get("reverse", 0) else total


OPERATORS: dict[str, Callable[[Call], Value]] = {
    "ReduceMean": _reduction(_mean),
    "ReduceSum": _reduction(_sum, operator.add),
    "ReduceProd": _reduction(_product, operator.mul),
    "ReduceMax": _reduction(_largest, torch.sym_max),
    "ReduceMin": _reduction(_smallest, torch.sym_min),
    "ReduceL1": _reduction(lambda v, axes, keep: _sum(v.abs(), axes, keep)),
    "ReduceL2": _reduction(_l2),
    "ReduceSumSquare": _reduction(lambda v, axes, keep: _sum(v * v, axes, keep)),
    "ReduceLogSum": _reduction(lambda v, axes, keep: _sum(v, axes, keep).log()),
    "ReduceLogSumExp": _reduction(lambda v, axes, keep: torch.logsumexp(v, axes, keepdim=keep)),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "TopK": _top_k,
    "CumSum": _cumulative_sum,
}
