"""remove_redundant_casts: of two casts in a row, drop the first when no value is lost in it."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from .graph_edit import call_functions, replace, users_of_output

aten = torch.ops.aten


def remove_redundant_casts(graph_module: GraphModule) -> int:
    """``cast(cast(x, wider), dtype)`` becomes ``cast(x, dtype)``, or ``x`` where that is its dtype. Returns the number of casts rewritten."""
    rewritten = 0
    for node in call_functions(graph_module, aten._to_copy.default):
        inner = node.args[0]
        if not _is_plain_cast(node) or not _is_plain_cast(inner):
            continue
        assert isinstance(inner, Node)
        source = inner.args[0]
        assert isinstance(source, Node)
        if not is_lossless(source.meta["val"].dtype, inner.meta["val"].dtype):
            continue
        if source.meta["val"].dtype == node.meta["val"].dtype and not (users_of_output(node) and source.op in ("placeholder", "get_attr")):
            replace(node, source)
        else:
            node.replace_input_with(inner, source)
        rewritten += 1
        if not inner.users:
            graph_module.graph.erase_node(inner)
    if rewritten:
        graph_module.recompile()
    return rewritten


def _is_plain_cast(node: Any) -> bool:
    """A cast that changes the dtype alone."""
    if not isinstance(node, Node) or node.target is not aten._to_copy.default:
        return False
    return all(value is None or name == "dtype" or (name in ("non_blocking", "pin_memory") and not value) for name, value in node.kwargs.items())


def is_lossless(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether every value of ``source`` is a value of ``target``."""
    if source == target or source == torch.bool:
        return True
    if source.is_complex or target.is_complex or target == torch.bool:
        return False
    if source.is_floating_point:
        if not target.is_floating_point:
            return False
        a, b = torch.finfo(source), torch.finfo(target)
        return a.eps >= b.eps and a.max <= b.max and a.smallest_normal >= b.smallest_normal
    low, high = torch.iinfo(source).min, torch.iinfo(source).max
    if target.is_floating_point:
        return high <= 2 / torch.finfo(target).eps and high <= torch.finfo(target).max
    return torch.iinfo(target).min <= low and high <= torch.iinfo(target).max
