"""expressions: pointwise FX nodes as lines of Triton."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes
from torch.fx import Node

from . import activations, arithmetic, logic, quantization  # noqa: F401  (they fill RULES)
from .rules import HALVES, RULES, TYPES, Unsupported, literal

_aten = torch.ops.aten
_FILLED = {
    _aten.full.default: None,
    _aten.full_like.default: None,
    _aten.scalar_tensor.default: None,
    _aten.zeros.default: 0,
    _aten.zeros_like.default: 0,
    _aten.ones.default: 1,
    _aten.ones_like.default: 1,
}
_FILL_ARGUMENT = {_aten.full.default: "fill_value", _aten.full_like.default: "fill_value", _aten.scalar_tensor.default: "s"}


@dataclass(frozen=True)
class Program:
    """Nodes as text.

    Attributes:
        inputs: what is read from outside, each with the number of dimensions of size 1 to add after its own (a prelu's weight per channel).
        lines: statements that compute ``v0``, ``v1``, ... (one for each node) from ``a0``, ``a1``, ... (the inputs, already converted).
        functions: the names from functions.py that they call.
    """

    inputs: tuple[tuple[Node, int], ...]
    lines: tuple[str, ...]
    functions: tuple[str, ...]


def pointwise_reject(node: Node) -> str:
    """Why no kernel can be generated for a node as a pointwise one; "" when one can."""
    try:
        write((node,))
    except Unsupported as reason:
        return f"{node.target} {reason}"
    return ""


def write(nodes: Sequence[Node]) -> Program:
    """Nodes in topological order, one line for each. Raises Unsupported."""
    inputs: dict[tuple[Node, int], str] = {}
    known: dict[Node, str] = {}
    lines = []
    for index, node in enumerate(nodes):
        dtype = spec_of(node).dtype
        constant = filled_value(node)
        if constant is not None:
            text = literal(constant, dtype)
        else:
            rule = RULES.get(node.target) if node.op == "call_function" else None
            if rule is None:
                raise Unsupported("is not pointwise")
            _same_device(node)
            text = rule(_NodeCall(node, dtype, known, inputs))
        known[node] = f"v{index}"
        lines.append(f"v{index} = {text}")
    functions = set(re.findall(r"(?<![\w.])([a-z]\w*)\(", "\n".join(lines))) - {"float"}
    return Program(tuple(inputs), tuple(lines), tuple(sorted(functions)))


def filled_value(node: Node) -> float | int | bool | None:
    """The number that every element of ``full(...)`` is; None for other nodes. Such nodes are never read: their number is written instead."""
    if node.op != "call_function" or node.target not in _FILLED:
        return None
    name = _FILL_ARGUMENT.get(node.target)
    value = _FILLED[node.target] if name is None else _arguments(node)[name]
    return value if isinstance(value, (int, float)) else None


def spec_of(node: Node) -> torch.Tensor:
    """The node's fake tensor. Raises Unsupported where it is none, its shape is not static, or Triton has no such dtype."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise Unsupported("has an argument or result that is not a tensor")
    if not all(isinstance(size, int) for size in value.shape):
        raise Unsupported("has a dynamic shape")
    if value.dtype not in TYPES:
        raise Unsupported(f"of {value.dtype} values")
    return value


def _arguments(node: Node) -> dict[str, Any]:
    schema: Any = node.target
    found = {}
    for index, argument in enumerate(schema._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, default)
    return found


def _same_device(node: Node) -> None:
    device = node.kwargs.get("device")
    if device is not None and torch.device(str(device)).type != node.all_input_nodes[0].meta["val"].device.type:
        raise Unsupported("changes the device")


def _convert(text: str, source: torch.dtype, target: torch.dtype, rounded: bool) -> str:
    """A value kept for dtype ``source`` as one for ``target``; ``rounded``: as if it had been stored in ``source``."""
    if rounded and source in HALVES:
        text = f"{text}.to(tl.{TYPES[source]}).to(tl.float32)"
    if _kept(source) == _kept(target):
        return text
    return f"({text} != 0)" if target == torch.bool else f"{text}.to(tl.{TYPES[_kept(target)]})"


def _kept(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALVES else dtype


class _NodeCall:
    """See rules.Call."""

    def __init__(self, node: Node, dtype: torch.dtype, known: dict[Node, str], inputs: dict[tuple[Node, int], str]) -> None:
        self.node, self.dtype = node, dtype
        self._arguments, self._known, self._inputs = _arguments(node), known, inputs

    def __call__(self, name: str, dtype: torch.dtype | None = None, exact: bool = False, channel: bool = False) -> str:
        dtype = self.dtype if dtype is None else dtype
        value = self.value(name)
        if isinstance(value, (int, float)):
            if exact and dtype in HALVES:
                value = torch.tensor(value, dtype=torch.float64).to(dtype).item()
            return literal(value, dtype)
        if not isinstance(value, Node):
            raise Unsupported(f"with {name} = {value}")
        source = spec_of(value)
        constant = filled_value(value)
        if constant is not None:
            return _convert(literal(constant, source.dtype), source.dtype, dtype, True)
        if value in self._known:
            return _convert(self._known[value], source.dtype, dtype, exact)
        trailing = max(spec_of(self.node).dim() - 2, 0) if channel and source.dim() == 1 else 0
        text = self._inputs.setdefault((value, trailing), f"a{len(self._inputs)}")
        return _convert(text, source.dtype, dtype, False)

    def value(self, name: str) -> Any:
        value = self._arguments[name]
        if isinstance(value, (complex, torch.SymInt, torch.SymFloat)):
            raise Unsupported(f"with {name} = {value}")
        return value

    def own_dtype(self, name: str) -> torch.dtype:
        return spec_of(self.value(name)).dtype

    def common(self) -> torch.dtype:
        values = [spec_of(v) if isinstance(v, Node) else v for v in (self.value("self"), self.value("other"))]
        return elementwise_dtypes(*values, type_promotion_kind=ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT)[1]
