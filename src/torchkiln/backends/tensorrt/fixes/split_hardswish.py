"""split_hardswish: hardswish in bf16 as ``x * clamp(x + 3, 0, 6) / 6``.

TensorRT's ONNX parser takes HardSwish in FLOAT, HALF and INT8 only ("Only FLOAT, HALF or INT8 input is supported for the HardSwish operator",
TensorRT-RTX 1.7); the builder fuses the parts again.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from ....lower.graph_edit import insert_call

aten = torch.ops.aten


def split_hardswish(graph_module: GraphModule) -> int:
    """Rewrite, in place, every hardswish whose value is bf16. Returns the number of rewrites."""
    rewrites = 0
    for node in graph_module.graph.find_nodes(op="call_function", target=aten.hardswish.default):
        if node.meta["val"].dtype is not torch.bfloat16:
            continue
        x = node.args[0]
        shifted = insert_call(graph_module, aten.add.Tensor, (x, 3.0), before=node)
        clamped = insert_call(graph_module, aten.clamp.default, (shifted, 0.0, 6.0), before=node)
        scaled = insert_call(graph_module, aten.div.Tensor, (clamped, 6.0), before=node)
        product = insert_call(graph_module, aten.mul.Tensor, (x, scaled), before=node)
        node.replace_all_uses_with(product)
        graph_module.graph.erase_node(node)
        rewrites += 1
    graph_module.recompile()
    return rewrites
