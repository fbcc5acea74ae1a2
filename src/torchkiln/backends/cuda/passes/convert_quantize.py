"""convert_quantize: pairs per tensor become the dialect's ``quantize`` and ``dequantize``, without the casts around them; equal ones become one."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from ....lower.graph_edit import call_functions, constant_of
from ....lower.remove_dead_code import remove_dead_code
from ....lower.remove_redundant_casts import is_lossless
from ....quantized_ops import Quantization, has_quantized_ops, is_quantized_op, read_quantization
from ....quantized_ops import is_quantize as is_torch_quantize
from ..quantized_reason import why_not_a_number
from .emit import emit
from .match import FLOATS, dtype_of, is_cast, reject, widened
from .quantization import DEQUANTIZE, QUANTIZE, insert_number


def convert_quantize(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of nodes rewritten.

    * a quantize of a tensor that was only made float32 for it reads that tensor;
    * a dequantize whose readers cast it gives their dtype at once: scales are float32, what comes out is in the dtype that is computed in;
    * of several equal ones of a tensor, which different readers have, the first serves all.

    Constants stay: see fuse_int8 and fold_dequantize. What has no one scale that is a number is refused; (node, reason) is appended to
    ``graph_module.meta["rejects"]``.
    """
    graph_module.meta.setdefault("rejects", [])
    if not has_quantized_ops(graph_module.graph):
        return 0
    count = 0
    for node in list(graph_module.graph.nodes):
        if not is_quantized_op(node):
            continue
        grid = read_quantization(node)
        if constant_of(grid.source) is not None:
            continue
        reason = why_not_a_number(grid)
        if reason:
            reject(graph_module, node, reason)
            continue
        _convert(graph_module, node, grid)
        count += 1
    count += merge_equal(graph_module)
    remove_dead_code(graph_module)
    graph_module.recompile()
    return count


def _convert(graph_module: GraphModule, node: Node, grid: Quantization) -> None:
    if is_torch_quantize(node):
        source = widened(grid.source)
        inverse = insert_number(graph_module, 1.0 / grid.scale, node, before=node)
        emit(graph_module, node, QUANTIZE, (source, inverse, grid.zero_point, grid.low, grid.high, grid.dtype))
        return
    scale = insert_number(graph_module, grid.scale, node, before=node)
    dtype = dtype_of(node)
    for user in list(node.users):
        narrow = dtype_of(user)
        if is_cast(user) and dtype in FLOATS and narrow is not None and dtype is not None and is_lossless(narrow, dtype):
            emit(graph_module, user, DEQUANTIZE, (grid.source, scale, grid.zero_point, narrow))
    if node.users:
        emit(graph_module, node, DEQUANTIZE, (grid.source, scale, grid.zero_point, dtype))
    else:
        graph_module.graph.erase_node(node)


def merge_equal(graph_module: GraphModule) -> int:
    """Quantizes and dequantizes of one tensor with the same numbers become the first of them. Returns how many vanished."""
    first: dict[tuple[Any, ...], Node] = {}
    count = 0
    for node in call_functions(graph_module, QUANTIZE, DEQUANTIZE):
        source, number, *rest = node.args
        key = (node.target, source, number.target, *rest)  # type: ignore[union-attr]
        if key not in first:
            first[key] = node
            continue
        node.replace_all_uses_with(first[key])
        graph_module.graph.erase_node(node)
        count += 1
    return count
