"""remove_dead_code: nodes whose result nobody reads, and tensors of the module that no node reads.

What has an effect stays: mutation, random draws (they advance the generator) and runtime assertions.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

_KEPT = ("assert", "sym_constrain")


def remove_dead_code(graph_module: GraphModule) -> int:
    """Returns the number of nodes and tensors removed."""
    removed = 0
    for node in reversed(list(graph_module.graph.nodes)):
        if node.users or node.op in ("placeholder", "output") or _has_effect(node):
            continue
        graph_module.graph.erase_node(node)
        removed += 1
    removed += _remove_unread_tensors(graph_module)
    if removed:
        graph_module.recompile()
    return removed


def _has_effect(node: Node) -> bool:
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "").lstrip("_")
    return node.is_impure() or name.startswith(_KEPT)


def _remove_unread_tensors(graph_module: GraphModule) -> int:
    read = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    tensors = [name for name, value in (*graph_module._buffers.items(), *graph_module._parameters.items()) if isinstance(value, torch.Tensor)]
    unread = [name for name in tensors if name not in read]
    for name in unread:
        delattr(graph_module, name)
    return len(unread)
