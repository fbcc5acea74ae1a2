"""fuse_layer_norm: a layer norm between linear layers is taken apart: its moments come from the layer in front, the layers behind apply them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops.linear import MOMENTS_PART
from ....lower.graph_edit import call_functions, constant_of, insert_call
from ....lower.remove_dead_code import remove_dead_code
from .emit import put
from .match import Refused, arguments_of, dtype_of, reject, shape_of

aten = torch.ops.aten
_kiln = torch.ops.torchkiln

_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_HALVES = (torch.float16, torch.bfloat16)
#: The moments of a row, all its parts, are read for each tile of columns: longer rows have a norm of their own. Shorter ones are cheap to normalize.
_CHANNELS = (4 * MOMENTS_PART, 2048)


def fuse_layer_norm(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of layer norms that are gone.

    ``linear(norm(linear(..)))``, with permutations and views of the leading dimensions between, becomes ``linear_moments`` and
    ``linear_normalized``, when nobody but linear layers reads the norm. Half precision only: in float32 the product is by far the larger part.
    """
    count = 0
    for norm in call_functions(graph_module, _kiln.layer_norm.default):
        try:
            producer, before = _producer(norm)
            consumers = [(user, chain) for user, chain in _consumers(norm)]
        except Refused as refused:
            reject(graph_module, norm, str(refused))
            continue
        _rewrite(graph_module, norm, producer, before, consumers)
        count += 1
    if count:
        remove_dead_code(graph_module)
        graph_module.recompile()
    return count


def _producer(norm: Node) -> tuple[Node, list[Node]]:
    """The linear layer whose rows are normalized, and the views from it to the norm, in order. Raises Refused."""
    given = arguments_of(norm)
    x: Any = given["x"]
    channels = shape_of(x)[-1] if shape_of(x) else 0
    if list(given["normalized_shape"]) != [channels]:
        raise Refused(f"normalizes over {list(given['normalized_shape'])}, not over the last dimension")
    if dtype_of(x) not in _HALVES or given["dtype"] != dtype_of(x):
        raise Refused(f"normalizes {dtype_of(x)} to {given['dtype']}: only halves are taken apart")
    if any(given[name] is not None and constant_of(given[name]) is None for name in ("weight", "bias")):
        raise Refused("its weight or bias is computed")
    if channels % MOMENTS_PART or not _CHANNELS[0] <= channels <= _CHANNELS[1]:
        raise Refused(f"rows of {channels} channels: expected a multiple of {MOMENTS_PART} from {_CHANNELS[0]} to {_CHANNELS[1]}")
    chain: list[Node] = []
    node = x
    while isinstance(node, Node) and _keeps_rows(node):
        chain.insert(0, node)
        node = node.args[0]
    is_moments = isinstance(node, Node) and node.target is operator.getitem and node.args[0].target is _kiln.linear_moments.default  # type: ignore[union-attr]
    if not is_moments and (not isinstance(node, Node) or node.target is not _kiln.linear.default):
        raise Refused("what it normalizes is not the result of a linear layer")
    return node, chain


def _consumers(norm: Node) -> list[tuple[Node, list[Node]]]:
    """The linear layers that read the norm, each with the views from the norm to it, in order. Raises Refused."""
    found: list[tuple[Node, list[Node]]] = []

    def follow(node: Node, chain: list[Node]) -> None:
        if not node.users:
            raise Refused("nobody reads it")
        for user in node.users:
            if user.target is _kiln.linear.default and user.args[0] is node and node not in user.args[1:]:
                found.append((user, chain))
            elif _keeps_rows(user):
                follow(user, [*chain, user])
            else:
                raise Refused(f"{user.name} reads it, which is no linear layer")

    follow(norm, [])
    return found


def _keeps_rows(node: Node) -> bool:
    """A permutation or view of the leading dimensions: rows stay what they are."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return False
    source, result = shape_of(node.args[0]), shape_of(node)
    if node.target is aten.permute.default:
        return bool(source) and int(node.args[1][-1]) % len(source) == len(source) - 1  # type: ignore[index, arg-type]
    return node.target in _VIEWS and len(source) > 1 and len(result) > 1 and source[-1] == result[-1]


def _rewrite(graph_module: GraphModule, norm: Node, producer: Node, before: list[Node], consumers: list[tuple[Node, list[Node]]]) -> None:
    given = arguments_of(norm)
    if producer.target is operator.getitem:  # another norm has asked for the moments
        both: Any = producer.args[0]
        y = producer
    else:
        both = insert_call(graph_module, _kiln.linear_moments.default, producer.args, before=producer)
        y = insert_call(graph_module, operator.getitem, (both, 0), before=producer)
    moments = next((user for user in both.users if user.target is operator.getitem and user.args[1] == 1), None)
    if moments is None:
        moments = insert_call(graph_module, operator.getitem, (both, 1), before=y.next)
    if y is not producer:
        put(graph_module, producer, y)
    for linear, after in consumers:
        x, rows = y, moments
        for view in [*before, *after]:
            x, rows = (_viewed(graph_module, view, value, linear) for value in (x, rows))
        _, weight, bias, residual, activation, alpha = linear.args
        args = (x, weight, bias, residual, rows, given["weight"], given["bias"], given["eps"], activation, alpha)
        put(graph_module, linear, insert_call(graph_module, _kiln.linear_normalized.default, args, before=linear))


def _viewed(graph_module: GraphModule, view: Node, value: Node, before: Node) -> Node:
    """``value``, whose last dimension is its own, through the same view of its leading dimensions."""
    if view.target is aten.permute.default:
        return insert_call(graph_module, aten.permute.default, (value, view.args[1]), before=before)
    shape = [*shape_of(view)[:-1], shape_of(value)[-1]]
    return insert_call(graph_module, aten.reshape.default, (value, shape), before=before)
