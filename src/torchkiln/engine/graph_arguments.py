"""The arguments of a graph's calls as JSON values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from ..errors import CorruptEngineFile, UserError
from .op_table import find_target, target_name

MAX_DEPTH = 32
_INT_RANGE = (-(2**63), 2**64 - 1)

_DTYPE_NAMES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex32",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "quint8",
    "qint8",
    "qint32",
]
_NAMED: dict[str, dict[str, Any]] = {
    "dtype": {name: getattr(torch, name) for name in _DTYPE_NAMES if hasattr(torch, name)},
    "layout": {
        name: getattr(torch, name)
        for name in ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
        if hasattr(torch, name)
    },
    "memory_format": {name: getattr(torch, name) for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")},
}
_TYPES = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def encode_argument(value: Any, names: Mapping[Node, str], device: torch.device, depth: int = 0) -> Any:
    """A call's argument as a JSON value. Raises UserError for one that is not data."""
    if depth > MAX_DEPTH:
        raise UserError(f"argument nested deeper than {MAX_DEPTH}")
    if isinstance(value, Node):
        return {"node": names[value]}
    if value is None or type(value) in (bool, str, float):
        return value
    if type(value) is int:
        if not _INT_RANGE[0] <= value <= _INT_RANGE[1]:
            raise UserError(f"expected an integer of 64 bits, got {value}")
        return value
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, tuple):
        return {"tuple": [encode_argument(part, names, device, depth + 1) for part in value]}
    if isinstance(value, list):
        return [encode_argument(part, names, device, depth + 1) for part in value]
    if isinstance(value, slice):
        return {"slice": [encode_argument(part, names, device, depth + 1) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": None if same_device(value, device) else str(value)}
    if isinstance(value, OpOverload):
        return {"operator": target_name(value)}
    for kind, cls in _TYPES.items():
        if isinstance(value, cls):
            for name, known in _NAMED[kind].items():
                if known == value:
                    return {kind: name}
    raise UserError(f"expected an argument that is data, got {value!r:.200} ({type(value).__module__}.{type(value).__qualname__})")


def decode_argument(data: Any, values: Mapping[str, Node], device: torch.device, where: str, depth: int = 0) -> Any:
    """The argument of ``encode_argument``'s result. Raises CorruptEngineFile, also for a node that has not been defined yet."""
    if depth > MAX_DEPTH:
        raise CorruptEngineFile(f"{where}: argument nested deeper than {MAX_DEPTH}")
    if isinstance(data, list):
        return [decode_argument(part, values, device, where, depth + 1) for part in data]
    if not isinstance(data, dict):
        if type(data) is int and not _INT_RANGE[0] <= data <= _INT_RANGE[1]:
            raise CorruptEngineFile(f"{where}: expected an integer of 64 bits")
        return data
    if len(data) != 1:
        raise CorruptEngineFile(f"{where}: expected an argument with one member, got {sorted(data)[:5]}")
    kind, value = next(iter(data.items()))
    if kind == "node":
        if not isinstance(value, str) or value not in values:
            raise CorruptEngineFile(f"{where}: reads {value!r:.200}, which no node before it defines")
        return values[value]
    if kind in ("tuple", "slice", "complex") and isinstance(value, list):
        parts = [decode_argument(part, values, device, where, depth + 1) for part in value]
        if kind == "tuple":
            return tuple(parts)
        if kind == "slice" and len(parts) == 3:
            return slice(*parts)
        if kind == "complex" and len(parts) == 2 and all(type(part) is float for part in parts):
            return complex(*parts)
    if kind in _NAMED and isinstance(value, str) and value in _NAMED[kind]:
        return _NAMED[kind][value]
    if kind == "device":
        return device if value is None else _device(value, where)
    if kind == "operator" and isinstance(value, str):
        return find_target(value)
    raise CorruptEngineFile(f"{where}: unknown or malformed argument {data!r:.200}")


def same_device(device: torch.device, engine_device: torch.device) -> bool:
    """Whether ``device`` means the engine's device; one without an index means any of its kind."""
    return device.type == engine_device.type and (device.index == engine_device.index or None in (device.index, engine_device.index))


def _device(value: Any, where: str) -> torch.device:
    if isinstance(value, str):
        try:
            return torch.device(value)
        except RuntimeError:
            pass
    raise CorruptEngineFile(f"{where}: expected a torch device, got {value!r:.200}")
