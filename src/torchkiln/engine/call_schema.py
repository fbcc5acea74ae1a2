"""Whether a call's arguments fit its operator's schema, so that a bad file fails when it is loaded and not in the first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ..errors import CorruptEngineFile

#: Kinds of schema type whose values are data, and what Python types those are. Enumerations (dtype, layout) are integers in a schema.
_INTEGERS = (int, torch.dtype, torch.layout, torch.memory_format)
_DATA: dict[str, tuple[type, ...]] = {
    "IntType": _INTEGERS,
    "SymIntType": _INTEGERS,
    "FloatType": (int, float),
    "SymFloatType": (int, float),
    "NumberType": (int, float, complex),
    "BoolType": (bool, int),
    "SymBoolType": (bool, int),
    "StringType": (str,),
    "DeviceObjType": (torch.device,),
}
_NUMBERS = ("IntType", "SymIntType", "FloatType", "SymFloatType", "BoolType")


def check_call(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> None:
    """Raises CorruptEngineFile naming the argument. Values that other nodes compute are taken on trust: PyTorch checks them when it runs."""
    if not isinstance(target, torch._ops.OpOverload):
        return
    schema = target._schema
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    given = dict(zip([argument.name for argument in positional], args))  # noqa: B905 (too many are counted below)
    known = {argument.name for argument in schema.arguments}
    if len(args) > len(positional) or not kwargs.keys() <= known or kwargs.keys() & given.keys():
        raise CorruptEngineFile(f"{where}: {len(args)} positional arguments and keywords {sorted(kwargs)!r:.200} do not fit {schema}")
    given.update(kwargs)
    # PyTorch makes a tensor of a number for some operators: aten.add.Tensor(x, 1).
    numbers_as_tensors = torch._C._should_allow_numbers_as_tensors(schema.name.split("::")[-1])
    for argument in schema.arguments:
        if argument.name not in given:
            if not argument.has_default_value():
                raise CorruptEngineFile(f"{where}: argument {argument.name!r} of {schema} is missing")
        elif not _fits(argument.type, given[argument.name], numbers_as_tensors):
            raise CorruptEngineFile(f"{where}: argument {argument.name!r}: expected {argument.type}, got {given[argument.name]!r:.100}")


def _fits(kind: Any, value: Any, numbers_as_tensors: bool) -> bool:
    if isinstance(value, Node):
        return True
    name = kind.kind()
    if name == "OptionalType":
        return value is None or _fits(kind.getElementType(), value, numbers_as_tensors)
    if name == "ListType":
        element = kind.getElementType()
        # A list of numbers may be given as one number, which stands for every place.
        return (
            all(_fits(element, part, numbers_as_tensors) for part in value)
            if isinstance(value, (list, tuple))
            else element.kind() in _NUMBERS and _fits(element, value, numbers_as_tensors)
        )
    if name == "TensorType":
        return numbers_as_tensors and isinstance(value, _DATA["NumberType"])
    # Kinds not listed hold no data a file can carry, or are checked by PyTorch.
    return isinstance(value, _DATA[name]) if name in _DATA else True
