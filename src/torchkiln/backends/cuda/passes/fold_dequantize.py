"""fold_dequantize: weights in 8 bits whose layer computes in floating point become floating constants: dequantized once and not in every call."""

from __future__ import annotations

import torch
from torch.fx import GraphModule
from torch.fx.node import map_arg

from ....lower.graph_edit import constant_of, insert_constant, replace
from ....lower.remove_dead_code import remove_dead_code
from ....quantized_ops import has_quantized_ops, is_dequantize
from .match import is_cast


def fold_dequantize(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of weights. They are rounded to the dtype that their readers cast them to."""
    if not has_quantized_ops(graph_module.graph):
        return 0
    count = 0
    for node in list(graph_module.graph.nodes):
        if not is_dequantize(node) or any(constant_of(n) is None for n in node.all_input_nodes):
            continue
        args, kwargs = map_arg((node.args, dict(node.kwargs)), constant_of)
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        name = f"{node.all_input_nodes[0].target}_dequantized"
        for user in list(node.users):
            if is_cast(user):
                low = value.to(user.meta["val"].dtype)
                replace(user, insert_constant(graph_module, name, low.contiguous(), before=user))
        if node.users:
            replace(node, insert_constant(graph_module, name, value.contiguous(), before=node))
        count += 1
    if count:
        remove_dead_code(graph_module)
        graph_module.recompile()
    return count
