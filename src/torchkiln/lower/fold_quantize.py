"""fold_quantize: a constant that is quantized becomes a constant of integers; its dequantize stays, so that it is stored and read in 8 bits.

A scale and a zero point that are constants of one element become numbers.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from ..quantized_ops import is_quantize, is_quantized_op, read_quantization, register_quantized_ops
from .graph_edit import constant_of, insert_call, insert_constant, replace


def fold_quantize(graph_module: GraphModule) -> int:
    """Returns the number of rewrites."""
    rewrites = 0
    for node in list(graph_module.graph.nodes):
        if not is_quantized_op(node):
            continue
        literal = _with_numbers(graph_module, node)
        folded = is_quantize(literal) and _fold(graph_module, literal)
        rewrites += (literal is not node) + folded
    if rewrites:
        graph_module.recompile()
    return rewrites


def _with_numbers(graph_module: GraphModule, node: Node) -> Node:
    """The node with a scale and zero point that are numbers, where it has them as constant tensors; else itself."""
    grid = read_quantization(node)
    scale, zero_point = constant_of(grid.scale), constant_of(grid.zero_point)
    if grid.axis is not None or grid.group_size is not None or scale is None or zero_point is None or scale.numel() != 1 or zero_point.numel() != 1:
        return node
    ops = register_quantized_ops()
    target = ops.quantize_per_tensor.default if is_quantize(node) else ops.dequantize_per_tensor.default
    arguments = (grid.source, float(scale.item()), int(zero_point.item()), grid.low, grid.high, grid.dtype)
    kwargs = {name: value for name, value in node.kwargs.items() if name == "out_dtype"}
    literal = insert_call(graph_module, target, arguments, kwargs, before=node)
    replace(node, literal)
    return literal


def _fold(graph_module: GraphModule, node: Node) -> bool:
    grid = read_quantization(node)
    value = constant_of(grid.source)
    parts = [part for part in (grid.scale, grid.zero_point) if isinstance(part, Node)]
    if value is None or any(constant_of(part) is None for part in parts):
        return False
    values = {n: constant_of(n) for n in node.all_input_nodes}
    args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
    assert callable(node.target)
    with torch.no_grad():
        integers = node.target(*args, **kwargs)
    assert isinstance(grid.source, Node)
    replace(node, insert_constant(graph_module, f"{grid.source.target}_int8", integers, before=node))
    return True
