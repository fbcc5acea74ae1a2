"""quantization: what the passes over int8 ask of the dialect's ``quantize`` and ``dequantize``, and the numbers they keep in constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import quantize as _quantize  # noqa: F401  (registers the operators)
from ....lower.graph_edit import constant_of, fake_mode_of, insert_constant

QUANTIZE = torch.ops.torchkiln.quantize.default
DEQUANTIZE = torch.ops.torchkiln.dequantize.default


@dataclass(frozen=True)
class Grid:
    """What integers stand for: ``value = (integer - zero_point) * scale``.

    Attributes:
        number: the scale of a dequantize, one over it of a quantize.
        low, high: the bounds of a quantize; those of the dtype for a dequantize.
    """

    number: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype

    @property
    def is_symmetric(self) -> bool:
        """Whether int8 kernels take it."""
        return self.dtype is torch.int8 and self.zero_point == 0

    def is_inverse_of(self, other: Grid) -> bool:
        """Whether a quantize by this gives the integers again that ``other`` dequantizes."""
        return abs(self.number * other.number - 1) < 1e-6 and (self.zero_point, self.dtype) == (other.zero_point, other.dtype)


def grid_of(node: Any) -> Grid | None:
    """Of a quantize or dequantize of the dialect; None for anything else."""
    if not isinstance(node, Node) or node.target not in (QUANTIZE, DEQUANTIZE):
        return None
    number = constant_of(node.args[1])
    assert number is not None
    zero_point: Any = node.args[2]
    if node.target is QUANTIZE:
        low, high, dtype = node.args[3:6]
        return Grid(float(number), zero_point, low, high, dtype)  # type: ignore[arg-type]
    dtype = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    info = torch.iinfo(dtype)
    return Grid(float(number), zero_point, info.min, info.max, dtype)


def is_quantize(node: Any) -> bool:
    return isinstance(node, Node) and node.target is QUANTIZE


def is_dequantize(node: Any) -> bool:
    return isinstance(node, Node) and node.target is DEQUANTIZE


def insert_number(graph_module: GraphModule, number: float, like: Node, before: Node) -> Node:
    """A constant float32 [] of ``number`` on the device of ``like``; equal numbers share one.

    It is named by its bits: the plans of all batch sizes share constants by name.
    """
    value = torch.tensor(number, dtype=torch.float32)
    name = f"number_{int(value.view(torch.int32)) & 0xFFFFFFFF:08x}"
    if hasattr(graph_module, name):
        return insert_read(graph_module, name, before=before)
    return insert_constant(graph_module, name, value.to(like.meta["val"].device), before=before)


def insert_read(graph_module: GraphModule, name: str, before: Node) -> Node:
    """Another read of the constant of that name."""
    with graph_module.graph.inserting_before(before):
        node = graph_module.graph.get_attr(name)
    node.meta["val"] = fake_mode_of(graph_module).from_tensor(getattr(graph_module, name), static_shapes=True)
    return node
