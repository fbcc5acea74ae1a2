"""copy_constant_outputs: a model that returns one of its own tensors returns a copy, so that the caller cannot change the engine's."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from .graph_edit import insert_call


def copy_constant_outputs(graph_module: GraphModule) -> int:
    """Returns the number of outputs that were constants. Each becomes an operator of its own, which some segment then runs."""
    output = graph_module.graph.output_node()
    constants = {node for node in output.all_input_nodes if node.op == "get_attr"}
    for node in constants:
        copied = insert_call(graph_module, torch.ops.aten.clone.default, (node,), {}, before=output)
        output.replace_input_with(node, copied)
    return len(constants)
