"""convert_output_dtype: give the caller floating outputs in another dtype than the model's."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..program import Program
from .graph_edit import insert_call


def convert_output_dtype(program: Program, dtype: torch.dtype) -> int:
    """Cast every floating output tensor to ``dtype``; integer, boolean and complex outputs and numbers stay. Returns the number cast."""
    graph_module = program.graph_module
    output = graph_module.graph.output_node()
    cast: dict[Node, Node] = {}
    values: list[Node] = []
    converted = 0
    for node in output.args[0]:  # type: ignore[union-attr]
        assert isinstance(node, Node)
        value = node.meta["val"]
        if isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.dtype != dtype:
            if node not in cast:
                cast[node] = insert_call(graph_module, torch.ops.aten._to_copy.default, (node,), {"dtype": dtype}, before=output, like=node)
            node = cast[node]
            converted += 1
        values.append(node)
    if converted:
        output.args = (tuple(values),)
        graph_module.recompile()
    return converted
