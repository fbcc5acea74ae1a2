"""node: a node of an ONNX graph, and one call of it: what the functions of ``operators`` are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import ModelSourceError
from .data_types import torch_dtype
from .numbers import Numbers, to_tensor

#: What flows along an edge: a tensor, known numbers, a sequence of these (SequenceConstruct), or nothing (an input left out).
Value = Any


@dataclass
class Node:
    """``opset`` is that of the node's domain. ``graphs``: its subgraphs by attribute name."""

    op_type: str
    domain: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    graphs: dict[str, Any]

    def __str__(self) -> str:
        name = self.name or (f"that makes {self.outputs[0]}" if self.outputs else "without a name")
        operator = f"{self.domain}.{self.op_type}" if self.domain else self.op_type
        return f"ONNX node {name} ({operator}, opset {self.opset})"


@dataclass(frozen=True)
class Setting:
    """Of one call of a model: where tensors that its nodes make go, and what its floating types have been converted to (see OnnxModule)."""

    device: torch.device
    converted: Mapping[torch.dtype, torch.dtype] = field(default_factory=dict)


@dataclass
class Call:
    """One run of a node. ``run``: runs a subgraph of the node, by attribute name."""

    node: Node
    inputs: list[Value]
    setting: Setting
    run: Callable[[str], list[Value]] | None = None

    @property
    def device(self) -> torch.device:
        return self.setting.device

    def dtype(self, element_type: int) -> torch.dtype:
        """The torch dtype of an ONNX element type that an attribute names. Raises ModelSourceError."""
        dtype = torch_dtype(element_type, str(self.node))
        return self.setting.converted.get(dtype, dtype)

    @property
    def opset(self) -> int:
        return self.node.opset

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.node.attributes.get(name, default)

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> torch.Tensor:
        """The input as a tensor. Raises ModelSourceError when it is left out or no tensor."""
        value = self.inputs[index] if self.has(index) else None
        if isinstance(value, Numbers):
            return to_tensor(value, self.device)
        if not isinstance(value, torch.Tensor):
            raise self.error(f"input {index}: expected a tensor, got {'nothing' if value is None else type(value).__name__}")
        return value

    def tensors(self) -> list[torch.Tensor]:
        return [self.tensor(i) for i in range(len(self.inputs))]

    def optional(self, index: int) -> torch.Tensor | None:
        return self.tensor(index) if self.has(index) else None

    def numbers(self, index: int) -> Numbers | None:
        """The input's values where they are known while tracing, else None."""
        value = self.inputs[index] if self.has(index) else None
        return value if isinstance(value, Numbers) else None

    def all_numbers(self) -> list[Numbers] | None:
        """Every input as Numbers; None when one is a tensor."""
        return [v for v in self.inputs if v is not None] if all(v is None or isinstance(v, Numbers) for v in self.inputs) else None

    def known(self, index: int, what: str) -> list[Any]:
        """The known values of an input that must be known: a shape, axes. Raises ModelSourceError when data decides them."""
        numbers = self.numbers(index)
        if numbers is None and isinstance(value := self.inputs[index], torch.Tensor) and value.numel() == 0:
            return []
        if numbers is None:
            raise self.error(
                f"its {what} (input {index}) are computed from a tensor's data; only shapes that follow from the inputs' shapes can be built"
            )
        return numbers.flat()

    def axes(self, index: int, rank: int) -> list[int] | None:
        """Axes as numbers >= 0: the attribute ``axes`` or, where that is not given, input ``index``; None when neither is."""
        axes = self.get("axes")
        if axes is None and self.has(index):
            axes = self.known(index, "axes")
        return None if axes is None else [int(axis) % rank if rank else 0 for axis in axes]

    def error(self, message: str) -> ModelSourceError:
        return ModelSourceError(f"{self.node}: {message}")
