"""epilogue: a residual addition and an activation after a fused op move into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....lower.graph_edit import call_functions
from .emit import emit
from .match import activation_of, arguments_of, dtype_of, reject, shape_of, widened

aten = torch.ops.aten


@dataclass(frozen=True)
class Epilogue:
    """Where an op of the dialect takes its epilogue.

    Attributes:
        target: the op.
        residual, activation, alpha: positions of these arguments.
        is_residual_any_float: whether the residual may be of another dtype than the result.
        suits_residual: of two such ops whose results are added, one for which this is true takes the other's; by default none is better.
    """

    target: Callable[..., Any]
    residual: int
    activation: int
    alpha: int
    is_residual_any_float: bool = False
    suits_residual: Callable[[Node], bool] = lambda node: False

    def with_arguments(self, node: Node, **values: Any) -> tuple[Any, ...]:
        """The arguments of ``node`` with some of residual, activation and alpha replaced."""
        args = list(node.args)
        for name, value in values.items():
            args[getattr(self, name)] = value
        return tuple(args)

    def has_activation(self, node: Node) -> bool:
        return bool(node.args[self.activation] != "none")


def fuse_residuals(graph_module: GraphModule, epilogue: Epilogue) -> int:
    """``op(..) + other`` becomes ``op(.., residual=other)``, in the place of the addition. Returns the number of additions fused.

    Where both addends are such ops that nobody else reads, the one that suits takes the other, or else the later: its inputs are in use until then
    anyway.
    """
    order = {node: position for position, node in enumerate(graph_module.graph.nodes)}
    count = 0
    for add in call_functions(graph_module, aten.add.Tensor):
        addends = add.args[:2]
        found = [a for a in addends if isinstance(a, Node) and _takes_residual(a, epilogue)]
        open_ones = [a for a in found if len(a.users) == 1 and addends[0] is not addends[1]]
        if not open_ones:
            for node in found:
                reject(graph_module, node, f"{add.name} adds to it, but it has {len(node.users)} users")
            continue
        open_ones.sort(key=lambda node: (epilogue.suits_residual(node), order[node]))
        node = open_ones[-1]
        other = addends[1] if node is addends[0] else addends[0]
        reason = _why_no_residual(add, node, other)
        if reason:
            reject(graph_module, node, reason)
            continue
        residual = widened(other) if epilogue.is_residual_any_float else other
        position = order[add]
        fused = emit(graph_module, add, epilogue.target, epilogue.with_arguments(node, residual=residual))
        graph_module.graph.erase_node(node)
        order[fused] = position
        count += 1
    return count


def _takes_residual(node: Node, epilogue: Epilogue) -> bool:
    return node.target is epilogue.target and node.args[epilogue.residual] is None and not epilogue.has_activation(node)


def _why_no_residual(add: Node, node: Node, other: Any) -> str:
    if arguments_of(add)["alpha"] != 1:
        return f"{add.name} scales the second addend"
    if not isinstance(other, Node) or not shape_of(node) == shape_of(other) == shape_of(add):
        return f"{add.name} broadcasts: it adds {list(shape_of(other))} to {list(shape_of(node))}"
    if not dtype_of(node) == dtype_of(other) == dtype_of(add):
        return f"{add.name} adds {dtype_of(other)} to {dtype_of(node)}"
    return ""


def fuse_activations(graph_module: GraphModule, epilogue: Epilogue) -> int:
    """``activation(op(..))`` becomes ``op(.., activation)`` where nobody else reads what is between. Returns the number of activations fused."""
    count = 0
    for node in call_functions(graph_module, epilogue.target):
        if epilogue.has_activation(node):
            continue
        found = [(user, match) for user in node.users if (match := activation_of(user)) is not None]
        if not found:
            continue
        if len(node.users) > 1:
            reject(graph_module, node, f"{found[0][0].name} activates it, but it has {len(node.users)} users")
            continue
        ((user, (activation, alpha)),) = found
        emit(graph_module, user, epilogue.target, epilogue.with_arguments(node, activation=activation, alpha=alpha))
        graph_module.graph.erase_node(node)
        count += 1
    return count
