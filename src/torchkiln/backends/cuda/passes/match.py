"""match: what the fusion passes ask of nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from ....lower.graph_edit import users_of_output
from ....lower.remove_redundant_casts import is_lossless
from ..recipe import FLOATS

aten = torch.ops.aten

_PLAIN_ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.relu6.default: "relu6",
    aten.silu.default: "silu",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
}
_CLAMPS = {aten.hardtanh.default: ("min_val", "max_val"), aten.clamp.default: ("min", "max")}


class Refused(Exception):
    """Why what looks like a pattern stays as it is."""


def reject(graph_module: GraphModule, node: Node, reason: str) -> None:
    """Record that ``node`` was nearly fused."""
    graph_module.meta.setdefault("rejects", []).append((node, reason))


def arguments_of(node: Node) -> dict[str, Any]:
    """The arguments of a call of an operator by their names in its schema, defaults filled in."""
    assert isinstance(node.target, OpOverload)
    found = {}
    for position, argument in enumerate(node.target._schema.arguments):
        found[argument.name] = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
    return found


def activation_of(node: Any) -> tuple[str, float] | None:
    """(name in ``ACTIVATIONS``, alpha) when ``node`` is an activation, whose argument is ``node.args[0]``; None for anything else."""
    if not isinstance(node, Node) or node.op != "call_function" or dtype_of(node) not in FLOATS:
        return None
    target: Any = node.target
    if target in _PLAIN_ACTIVATIONS:
        return _PLAIN_ACTIVATIONS[target], 0.0
    if target in _CLAMPS:
        bounds = tuple(arguments_of(node)[name] for name in _CLAMPS[target])
        name = {(0, 6): "relu6", (0, None): "relu"}.get(bounds) if not any(isinstance(bound, Node) for bound in bounds) else None
        return (name, 0.0) if name else None
    if target is aten.gelu.default:
        return ("gelu_tanh" if arguments_of(node)["approximate"] == "tanh" else "gelu"), 0.0
    if target is aten.leaky_relu.default:
        slope = arguments_of(node)["negative_slope"]
        return None if isinstance(slope, Node) else ("leaky_relu", float(slope))
    return None


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of the tensor that ``node`` computes; () for what is no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def dtype_of(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.dtype if isinstance(value, torch.Tensor) else None


def is_cast(node: Any) -> bool:
    """A cast between floating dtypes that changes nothing else."""
    if not isinstance(node, Node) or node.target is not aten._to_copy.default:
        return False
    plain = all(value is None or name == "dtype" or (name in ("non_blocking", "pin_memory") and not value) for name, value in node.kwargs.items())
    return plain and dtype_of(node) in FLOATS and dtype_of(node.args[0]) in FLOATS


def widened(node: Any) -> Any:
    """The source of a cast that loses nothing; anything else as it is."""
    while is_cast(node):
        source, target = dtype_of(node.args[0]), dtype_of(node)
        assert source is not None
        assert target is not None
        if not is_lossless(source, target):
            break
        node = node.args[0]
    return node


def narrowing_users(node: Node) -> list[Node]:
    """The users of ``node``, when all of them are casts to one narrower dtype; else []."""
    users = list(node.users)
    dtypes = {dtype_of(user) for user in users}
    if len(dtypes) != 1 or users_of_output(node) or not all(is_cast(user) for user in users):
        return []
    (dtype,) = dtypes
    own = dtype_of(node)
    return users if dtype is not None and own is not None and dtype.itemsize < own.itemsize else []
