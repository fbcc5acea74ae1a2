"""merge_common_subexpressions: two calls of one pure operator with the same arguments become one."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from .graph_edit import is_pure, replace, users_of_output


def merge_common_subexpressions(graph_module: GraphModule) -> int:
    """Returns the number of calls merged into an earlier one."""
    merged = 0
    first: dict[Any, Node] = {}
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr":
            key: Any = ("get_attr", node.target)
        elif is_pure(node):
            key = (node.target, _key(node.args), _key(node.kwargs))
        else:
            continue
        earlier = first.setdefault(key, node)
        if earlier is node or (users_of_output(node) and users_of_output(earlier)):
            continue  # two outputs of one engine must not be one tensor
        replace(node, earlier)
        merged += 1
    if merged:
        graph_module.recompile()
    return merged


def _key(value: Any) -> Any:
    """``value`` as something hashable, in which 1, 1.0 and True differ."""
    if isinstance(value, (list, tuple)):
        return tuple(_key(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, _key(v)) for k, v in value.items()))
    if isinstance(value, slice):
        return (slice, _key(value.start), _key(value.stop), _key(value.step))
    if isinstance(value, float):
        return (float, value.hex())  # -0.0 is not 0.0, and nan is nan
    if isinstance(value, (Node, torch.SymInt)) or value is None:
        return value
    return (type(value), value)
