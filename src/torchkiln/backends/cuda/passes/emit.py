"""emit: put a fused call in the place of a node, and keep the values of what reads it true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....lower.graph_edit import insert_call, refresh_value, replace

aten = torch.ops.aten


def emit(graph_module: GraphModule, node: Node, target: Callable[..., Any], args: Sequence[Any]) -> Node:
    """Replace ``node`` by ``target(*args)``, of the same shape. Returns the new node."""
    fused = insert_call(graph_module, target, args, before=node)
    put(graph_module, node, fused)
    return fused


def put(graph_module: GraphModule, node: Node, replacement: Node) -> None:
    """Let every user of ``node`` read ``replacement``, erase ``node``, and follow a change of strides."""
    before = node.meta["val"]
    replace(node, replacement)
    if replacement.meta["val"].stride() != before.stride():
        follow_strides(graph_module, replacement)


def refresh_strides(graph_module: GraphModule) -> int:
    """Compute every value anew, in order, so that strides are true again where only shapes and dtypes were kept. Returns how many were not.

    A conversion to low precision leaves views (select, slice) with the strides of a dense tensor.
    """
    count = 0
    for node in graph_module.graph.nodes:
        before = node.meta.get("val")
        if node.op == "call_function" and isinstance(before, torch.Tensor):
            refresh_value(graph_module, node)
            count += node.meta["val"].stride() != before.stride()
    return count


def follow_strides(graph_module: GraphModule, node: Node) -> None:
    """Compute the values of the users of ``node`` anew, as far as strides changed. A view that they no longer allow gets a copy before it."""
    changed = set(node.users)
    while changed and node.op != "output":
        node = node.next
        if node not in changed or node.op == "output":
            continue
        changed.discard(node)
        before = node.meta.get("val")
        if not isinstance(before, torch.Tensor) or any(not isinstance(size, int) for size in before.shape):
            continue
        if node.target is aten.view.default and not can_view(node.args[0], node.args[1]):
            node.args = (copy_of(graph_module, node.args[0], node), node.args[1])
        refresh_value(graph_module, node)
        if node.meta["val"].stride() != before.stride():
            changed |= set(node.users)


def copy_of(graph_module: GraphModule, x: Any, before: Node) -> Node:
    """``x`` contiguous, in a tensor of its own."""
    return insert_call(graph_module, aten.clone.default, (x,), {"memory_format": torch.contiguous_format}, before=before)


def can_view(x: Any, shape: Any) -> bool:
    """Whether the strides of ``x`` allow a view of that shape."""
    value = x.meta["val"]
    try:
        torch.empty_strided(value.shape, value.stride(), device="meta").view(list(shape))
    except RuntimeError:
        return False
    return True
