"""simplify_views: two views or two permutations in a row become one."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from .graph_edit import call_functions, refresh_value

aten = torch.ops.aten
_RESHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)


def simplify_views(graph_module: GraphModule) -> int:
    """``view(view(x))`` becomes ``view(x)``, ``permute(permute(x))`` one ``permute``. Returns the number of operators bypassed."""
    rewritten = 0
    for node in call_functions(graph_module, aten.view.default, aten.reshape.default, aten.permute.default):
        before = node.args[0]
        rewritten += _join_permutes(node) if node.target is aten.permute.default else _join_views(node)
        if node.args[0] is not before:
            refresh_value(graph_module, node)
            assert isinstance(before, Node)
            if not before.users:
                graph_module.graph.erase_node(before)
    if rewritten:
        graph_module.recompile()
    return rewritten


def _join_permutes(node: Node) -> int:
    inner = node.args[0]
    if not isinstance(inner, Node) or inner.target is not aten.permute.default:
        return 0
    rank = node.meta["val"].dim()
    first: Any = inner.args[1]
    second: Any = node.args[1]
    node.args = (inner.args[0], [first[d % rank] % rank for d in second])
    return 1


def _join_views(node: Node) -> int:
    """Only where the source is contiguous, so that every view of it is one of plain memory."""
    inner = node.args[0]
    if not isinstance(inner, Node) or inner.target not in _RESHAPES:
        return 0
    source = inner.args[0]
    if not isinstance(source, Node) or not source.meta["val"].is_contiguous():
        return 0
    node.args = (source, node.args[1])
    return 1
