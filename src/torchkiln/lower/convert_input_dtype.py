"""convert_input_dtype: let the caller pass another dtype than the graph was captured with."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..program import Program
from .graph_edit import insert_call, refresh_value


def convert_input_dtype(program: Program, index: int, caller_dtype: torch.dtype) -> int:
    """Input ``index`` (in the order of ``program.inputs``) takes ``caller_dtype``; the graph casts it to the dtype it was captured with.

    The program's ``inputs`` and ``example_inputs`` describe what the caller passes, and are the caller's to set. Returns the number of
    casts inserted: 0 when the dtypes are equal already.
    """
    graph_module = program.graph_module
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    node = placeholders[index]
    captured_dtype = node.meta["val"].dtype
    if captured_dtype == caller_dtype:
        return 0
    users = list(node.users)
    first: Node = placeholders[-1].next
    cast = insert_call(graph_module, torch.ops.aten._to_copy.default, (node,), {"dtype": captured_dtype}, before=first, like=node)
    for user in users:
        user.replace_input_with(node, cast)
    node.meta["val"] = node.meta["val"].to(caller_dtype)
    refresh_value(graph_module, cast)
    graph_module.recompile()
    return 1
