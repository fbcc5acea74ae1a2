"""elementwise: arithmetic, comparisons and mathematical functions, element by element, with broadcasting."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from ..node import Call, Value
from ..numbers import LARGEST, Numbers, map_numbers

Function = Callable[[Call], Value]


def _operands(call: Call) -> list[Any]:
    """The inputs as torch functions take them: a single known number beside a tensor as a Python number, so that the graph has no constant for it."""
    rank = max((value.dim() for value in call.inputs if isinstance(value, torch.Tensor)), default=-1)
    operands: list[Any] = []
    for index, value in enumerate(call.inputs):
        lone = isinstance(value, Numbers) and value.values.size == 1 and len(value.shape) <= rank and value.dtype is not torch.bool
        operands.append(value.values.item() if lone else call.tensor(index))
    return operands if any(isinstance(v, torch.Tensor) for v in operands) else call.tensors()


def _small(numbers: list[Numbers] | None) -> list[Numbers] | None:
    return numbers if numbers is not None and all(n.values.size <= LARGEST for n in numbers) else None


def _unary(function: Callable[[torch.Tensor], torch.Tensor], number: Callable[[Any], Any] | None = None) -> Function:
    def run(call: Call) -> Value:
        numbers = call.numbers(0)
        if number is not None and numbers is not None and numbers.tensor is None:
            return map_numbers(number, numbers.dtype, numbers)
        return function(call.tensor(0))

    return run


def _binary(function: Callable[[Any, Any], torch.Tensor], number: Callable[[Any, Any], Any], result: torch.dtype | None = None) -> Function:
    def run(call: Call) -> Value:
        numbers = _small(call.all_numbers())
        if numbers is not None:
            return map_numbers(number, result or numbers[0].dtype, *numbers)
        return function(*_operands(call))

    return run


def _variadic(function: Callable[[Any, Any], Any], number: Callable[[Any, Any], Any]) -> Function:
    def run(call: Call) -> Value:
        numbers = _small(call.all_numbers())
        if numbers is not None:
            return reduce(lambda a, b: map_numbers(number, a.dtype, a, b), numbers)
        return reduce(function, call.tensors())

    return run


def _divide_number(a: Any, b: Any) -> Any:
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b if not (isinstance(b, float) and b == 0) else math.copysign(math.inf, a) if a else math.nan
    if isinstance(a, int) and isinstance(b, int) and (a < 0) != (b < 0):
        return -(-a // b)  # ONNX truncates towards zero
    return a // b


def _divide(a: Any, b: Any) -> torch.Tensor:
    floating = any(v.is_floating_point() for v in (a, b) if isinstance(v, torch.Tensor))
    return torch.div(a, b) if floating else torch.div(a, b, rounding_mode="trunc")


def _modulo(call: Call) -> Value:
    numbers = _small(call.all_numbers())
    truncate = bool(call.get("fmod", 0))
    if numbers is not None:
        return map_numbers(math.fmod if truncate else operator.mod, numbers[0].dtype, *numbers)
    return (torch.fmod if truncate else torch.remainder)(*_operands(call))


def _power(call: Call) -> Value:
    numbers = _small(call.all_numbers())
    if numbers is not None:
        return map_numbers(operator.pow, numbers[0].dtype, *numbers)
    dtype = call.inputs[0].dtype  # the result has the base's dtype, whatever the exponent's
    base, exponent = _operands(call)
    if isinstance(exponent, float) and exponent.is_integer() and isinstance(base, torch.Tensor) and not base.is_floating_point():
        exponent = int(exponent)
    return torch.pow(base, exponent).to(dtype)


def _cast(call: Call) -> Value:
    return _cast_to(call, call.dtype(call.get("to")))


def _cast_like(call: Call) -> Value:
    return _cast_to(call, call.inputs[1].dtype)


def _cast_to(call: Call, dtype: torch.dtype) -> Value:
    numbers = call.numbers(0)
    if numbers is not None and not dtype.is_complex and not str(dtype).startswith("torch.float8"):
        return numbers if numbers.dtype is dtype else map_numbers(lambda v: v, dtype, numbers)
    value = call.tensor(0)
    return value if value.dtype is dtype else value.to(dtype)


def _where(call: Call) -> Value:
    numbers = _small(call.all_numbers())
    if numbers is not None:
        return map_numbers(lambda condition, a, b: a if condition else b, numbers[1].dtype, *numbers)
    condition, a, b = call.tensors()
    return torch.where(condition, a, b)


def _clip(call: Call) -> Value:
    if call.opset < 11:
        low, high = call.get("min"), call.get("max")
        return call.tensor(0) if low is None and high is None else torch.clamp(call.tensor(0), low, high)
    bounds = []
    for index in (1, 2):
        numbers = call.numbers(index)
        bounds.append(numbers.values.item() if numbers is not None else call.optional(index))
    if bounds == [None, None]:
        return call.inputs[0]
    value = call.tensor(0)
    if all(b is None or not isinstance(b, torch.Tensor) for b in bounds):
        return torch.clamp(value, *bounds)
    for limit, bound in zip((torch.maximum, torch.minimum), bounds, strict=True):
        if bound is not None:
            value = limit(value, bound if isinstance(bound, torch.Tensor) else torch.full_like(value, bound))
    return value


def _is_inf(call: Call) -> Value:
    value = call.tensor(0)
    high, low = call.get("detect_positive", 1), call.get("detect_negative", 1)
    if high and low:
        return torch.isinf(value)
    if not high and not low:
        return torch.zeros_like(value, dtype=torch.bool)
    return value == (math.inf if high else -math.inf)


def _bit_shift(call: Call) -> Value:
    shift = torch.bitwise_left_shift if call.get("direction") == "LEFT" else torch.bitwise_right_shift
    return shift(*call.tensors())


def _mean(call: Call) -> Value:
    values = call.tensors()
    return reduce(torch.add, values) / len(values)


def _round_number(value: Any) -> Any:
    return round(value) if isinstance(value, float) else value


OPERATORS: dict[str, Function] = {
    "Add": _binary(torch.add, operator.add),
    "Sub": _binary(torch.sub, operator.sub),
    "Mul": _binary(torch.mul, operator.mul),
    "Div": _binary(_divide, _divide_number),
    "Mod": _modulo,
    "Pow": _power,
    "Sum": _variadic(torch.add, operator.add),
    "Max": _variadic(torch.maximum, torch.sym_max),
    "Min": _variadic(torch.minimum, torch.sym_min),
    "Mean": _mean,
    "Equal": _binary(torch.eq, operator.eq, torch.bool),
    "Greater": _binary(torch.gt, operator.gt, torch.bool),
    "GreaterOrEqual": _binary(torch.ge, operator.ge, torch.bool),
    "Less": _binary(torch.lt, operator.lt, torch.bool),
    "LessOrEqual": _binary(torch.le, operator.le, torch.bool),
    "And": _binary(torch.logical_and, lambda a, b: bool(a) and bool(b)),
    "Or": _binary(torch.logical_or, lambda a, b: bool(a) or bool(b)),
    "Xor": _binary(torch.logical_xor, lambda a, b: bool(a) != bool(b)),
    "Not": _unary(torch.logical_not, lambda a: not a),
    "BitwiseAnd": _binary(torch.bitwise_and, operator.and_),
    "BitwiseOr": _binary(torch.bitwise_or, operator.or_),
    "BitwiseXor": _binary(torch.bitwise_xor, operator.xor),
    "BitwiseNot": _unary(torch.bitwise_not),
    "BitShift": _bit_shift,
    "Abs": _unary(torch.abs, abs),
    "Neg": _unary(torch.neg, operator.neg),
    "Sign": _unary(torch.sign),
    "Ceil": _unary(torch.ceil, math.ceil),
    "Floor": _unary(torch.floor, math.floor),
    "Round": _unary(torch.round, _round_number),
    "Reciprocal": _unary(torch.reciprocal),
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Tan": _unary(torch.tan),
    "Asin": _unary(torch.asin),
    "Acos": _unary(torch.acos),
    "Atan": _unary(torch.atan),
    "Sinh": _unary(torch.sinh),
    "Cosh": _unary(torch.cosh),
    "Asinh": _unary(torch.asinh),
    "Acosh": _unary(torch.acosh),
    "Atanh": _unary(torch.atanh),
    "IsNaN": _unary(torch.isnan),
    "IsInf": _is_inf,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Where": _where,
    "Clip": _clip,
}
