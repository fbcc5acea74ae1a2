"""remove_size_assertions: drop run-time checks that a data-dependent size is at least 0 or 2.

torch.export gives the output size of operators like NMS the range [2, inf) and checks it at run time; the lower bound is a convention of its
own (sizes 0 and 1 are special to it), not the model's: one box kept, or none, is a correct result.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node


def remove_size_assertions(graph_module: GraphModule) -> int:
    """Returns the number of checks removed. The size computations they leave behind are dead code."""
    removed = 0
    for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_scalar.default):
        if _is_size_convention(node.args[0]):
            graph_module.graph.erase_node(node)
            removed += 1
    if removed:
        graph_module.recompile()
    return removed


def _is_size_convention(condition: object) -> bool:
    if not isinstance(condition, Node) or condition.target is not operator.ge:
        return False
    size, bound = condition.args
    return isinstance(size, Node) and size.target is torch.ops.aten.sym_size.int and bound in (0, 2)
