"""plan_io: a plan's inputs, outputs and optimization profiles, read from the engine and compared with what the build wrote down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import CorruptEngineFile, InputMismatch, TargetMismatch
from .data_types import short_name, torch_dtype
from .library import Library

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """An input or output. ``shape`` has -1 where a size varies."""

    name: str
    dtype: torch.dtype
    shape: Shape

    @property
    def is_static(self) -> bool:
        return -1 not in self.shape


@dataclass(frozen=True)
class PlanIO:
    """``profiles``: for each optimization profile, for each input, its smallest and largest shape."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    profiles: tuple[tuple[tuple[Shape, Shape], ...], ...]

    @property
    def is_static(self) -> bool:
        return all(port.is_static for port in (*self.inputs, *self.outputs))

    def choose_profile(self, shapes: Sequence[Shape]) -> int:
        """The first profile that contains these input shapes. Raises InputMismatch, which lists the profiles, when none does."""
        for index, ranges in enumerate(self.profiles):
            if all(_contains(low, high, shape) for (low, high), shape in zip(ranges, shapes, strict=True)):
                return index
        given = ", ".join(f"{port.name} {shape}" for port, shape in zip(self.inputs, shapes, strict=True))
        raise InputMismatch(f"tensorrt segment: no optimization profile contains the input shapes {given}. Profiles: {self._list_profiles()}")

    def _list_profiles(self) -> str:
        texts = []
        for index, ranges in enumerate(self.profiles):
            parts = [
                f"{port.name} {low}" if low == high else f"{port.name} {low} to {high}" for port, (low, high) in zip(self.inputs, ranges, strict=True)
            ]
            texts.append(f"{index}: {', '.join(parts)}")
        return "; ".join(texts)


def read_io(library: Library, engine: Any, metadata: Mapping[str, Any]) -> PlanIO:
    """The inputs and outputs in the order of the metadata, in which the engine's own order may not be.

    Raises CorruptEngineFile when the plan and the metadata disagree; TargetMismatch for a tensor that TensorRT wants in the CPU's memory.
    """
    modes = library.module.TensorIOMode
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs, outputs = (
        _read_ports(library, engine, metadata.get(key), key, [n for n in names if engine.get_tensor_mode(n) == mode])
        for key, mode in (("inputs", modes.INPUT), ("outputs", modes.OUTPUT))
    )
    profiles = tuple(tuple(_read_range(engine, port, index) for port in inputs) for index in range(max(1, engine.num_optimization_profiles)))
    return PlanIO(inputs, outputs, profiles)


def _read_ports(library: Library, engine: Any, listed: Any, key: str, names: list[str]) -> tuple[Port, ...]:
    if not isinstance(listed, list) or not all(isinstance(port, dict) and isinstance(port.get("name"), str) for port in listed):
        raise CorruptEngineFile(f"tensorrt segment: metadata: expected {key} as a list with names, got {listed!r}")
    if sorted(port["name"] for port in listed) != sorted(names):
        raise CorruptEngineFile(f"tensorrt segment: {key}: the file lists {[port['name'] for port in listed]}, the plan has {names}")
    ports = []
    for entry in listed:
        name = entry["name"]
        dtype = torch_dtype(engine.get_tensor_dtype(name))
        if dtype is None:
            raise CorruptEngineFile(f"tensorrt segment: {name}: expected a type torch has, got {engine.get_tensor_dtype(name).name}")
        port = Port(name, dtype, tuple(engine.get_tensor_shape(name)))
        if entry.get("dtype") != short_name(dtype) or not _agree(entry.get("shape"), port.shape):
            raise CorruptEngineFile(
                f"tensorrt segment: {name}: the file lists {entry.get('dtype')} {entry.get('shape')}, "
                f"the plan has {short_name(dtype)} {list(port.shape)}"
            )
        if engine.get_tensor_location(name) != library.module.TensorLocation.DEVICE:
            # Reading it would make the CPU wait for the GPU in every call.
            raise TargetMismatch(
                f"tensorrt segment: {name} holds a shape, which TensorRT reads in the CPU's memory; only tensors on the GPU are passed. "
                "Build again with the operator that takes its sizes from a tensor's values left to PyTorch."
            )
        ports.append(port)
    return tuple(ports)


def _agree(listed: Any, shape: Shape) -> bool:
    """Whether the network's shape, as listed, can be the engine's: the library may know a size when it builds that it does not know before."""
    return isinstance(listed, list) and len(listed) == len(shape) and all(-1 in (a, b) or a == b for a, b in zip(listed, shape, strict=True))


def _read_range(engine: Any, port: Port, profile: int) -> tuple[Shape, Shape]:
    if port.is_static:
        return port.shape, port.shape
    low, _, high = engine.get_tensor_profile_shape(port.name, profile)
    return tuple(low), tuple(high)


def _contains(low: Shape, high: Shape, shape: Shape) -> bool:
    return len(low) == len(shape) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
