"""quantized: quantize/dequantize pairs in the form that OpenVINO's PyTorch frontend and its low-precision transformations know.

The frontend makes one FakeQuantize of a pair on an activation, which the transformations turn into int8 kernels (exact_sums.py says on which
CPUs their sums are exact). An int8 constant that is dequantized it does not know: that becomes a cast and a product with the scales, the form in
which OpenVINO itself keeps int8 weights, also those of floating kernels. Integers of 4 bits are in a byte each here; pack_int4.py puts two in one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ...dtypes import dtype_name
from ...lower.graph_edit import constant_of, insert_call, insert_constant, is_pure, refresh_value
from ...lower.graph_edit import replace as replace_node
from ...partition.segment import Segment
from ...quantized_ops import INT8, Quantization, has_quantized_ops, is_dequantize, is_quantize, quantization_kind, read_quantization
from ..copy_graph_module import copy_graph_module

aten = torch.ops.aten

#: How many integers a FakeQuantize must have: with others the low-precision transformations leave it, or (255) compute other numbers.
_LEVELS = 256


def quantized_reason(node: Node) -> str:
    """Why OpenVINO does not take this quantize or dequantize node: "" when it does."""
    own = read_quantization(node)
    if is_quantize(node):
        if own.axis is not None or not isinstance(own.scale, float) or not isinstance(own.zero_point, int):
            return "OpenVINO takes activations quantized by one constant scale"
        if not _is_8_bit(own):
            return f"OpenVINO takes pairs of 8 bits, not {own.low} to {own.high} in {dtype_name(own.dtype)}"
        if not node.users or not all(is_dequantize(user) and read_quantization(user).is_same_grid(own) for user in node.users):
            return "OpenVINO takes it as one half of a pair: something else reads the integers"
        return ""
    if is_constant(own.source):
        grid = (own.scale, own.zero_point)
        return "" if all(isinstance(part, (int, float)) or constant_of(part) is not None for part in grid) else "its scale is computed"
    return "" if is_quantize(own.source) and not quantized_reason(own.source) else "OpenVINO takes it as one half of a pair"


def _is_8_bit(grid: Quantization) -> bool:
    if grid.dtype not in (torch.int8, torch.uint8):
        return False
    info = torch.iinfo(grid.dtype)
    return info.min <= grid.low < grid.high <= info.max


def spell_quantized(segment: Segment) -> Segment:
    """The segment with its pairs in OpenVINO's form; the segment itself when it has none."""
    if not has_quantized_ops(segment.graph_module.graph):
        return segment
    graph_module = copy_graph_module(segment.graph_module)
    weights_alone = quantization_kind(graph_module.graph) != INT8
    for node in list(graph_module.graph.nodes):
        if _is_constant_pair(node):
            replace_node(node, _expand(graph_module, node, read_quantization(node), rows_are_groups=weights_alone))
        elif is_quantize(node):
            _widen(graph_module, node, read_quantization(node))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return replace(segment, graph_module=graph_module)


def _is_constant_pair(node: Node) -> bool:
    return is_dequantize(node) and is_constant(read_quantization(node).source)


def is_constant(node: Any) -> bool:
    """Whether ``node`` is a constant, or operators make it of constants alone (integers of 4 bits are taken apart so)."""
    seen: set[Any] = set()
    waiting = [node]  # no recursion: graphs are deeper than Python's stack
    while waiting:
        found = waiting.pop()
        if found in seen or constant_of(found) is not None:
            continue
        if not isinstance(found, Node) or not is_pure(found) or not found.all_input_nodes:
            return False
        seen.add(found)
        waiting += found.all_input_nodes
    return True


def is_part_of_constant(node: Node) -> bool:
    """Whether nothing reads ``node``, directly or through such as itself, but dequantize nodes that become part of the IR's constants."""
    if is_dequantize(node):
        return _is_constant_pair(node)
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or not is_constant(node):
        return False  # what a dequantize node reads are integers
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        found = waiting.pop()
        if found in seen:
            continue
        seen.add(found)
        if is_dequantize(found):
            if not _is_constant_pair(found):
                return False
        elif not found.users or not is_constant(found):
            return False
        else:
            waiting += found.users
    return True


def _value_of(node: Node) -> torch.Tensor:
    """The tensor of a node that is_constant."""
    value = constant_of(node)
    if value is not None:
        return value
    args, kwargs = map_arg((node.args, dict(node.kwargs)), _value_of)
    assert callable(node.target)
    with torch.no_grad():
        found: torch.Tensor = node.target(*args, **kwargs)
    return found


def _widen(graph_module: GraphModule, node: Node, grid: Quantization) -> None:
    """A pair of fewer integers than 8 bits hold (-127 to 127; 0 to 127, from training with ``reduce_range``) as a clamp and a pair of all of them.

    The numbers stay the same.
    """
    if grid.high - grid.low + 1 == _LEVELS:
        return
    bounds = [(bound - grid.zero_point) * grid.scale for bound in (grid.low, grid.high)]
    clamped = insert_call(graph_module, aten.clamp.default, (grid.source, *bounds), before=node)
    dtype = torch.uint8 if grid.low >= 0 else torch.int8
    info = torch.iinfo(dtype)
    whole = (grid.scale, grid.zero_point, info.min, info.max, dtype)
    for part, source in ((node, clamped), *((user, node) for user in node.users)):
        part.args = (source, *whole)
        refresh_value(graph_module, part)


def _expand(graph_module: GraphModule, node: Node, grid: Quantization, *, rows_are_groups: bool) -> Node:
    """The dequantize node in that form; with a scale for each group, as a matrix of groups (rows, groups, group_size) that is then flattened.

    ``rows_are_groups``: a matrix in 4 bits with a scale a row is one of groups too, one in each row, so that pack_int4 takes it.
    """
    shape, dtype = list(node.meta["val"].shape), node.meta["val"].dtype
    source = grid.source
    group_size = grid.group_size
    if group_size is None and rows_are_groups and grid.is_4_bit and grid.axis == 0 and len(shape) == 2:
        group_size = shape[1]
    if group_size is not None or constant_of(source) is None:
        integers = _value_of(source)
        grouped = integers if group_size is None else integers.unflatten(1, (-1, group_size))
        source = insert_constant(graph_module, "integers", grouped, before=node)
    rank = source.meta["val"].dim()
    value = insert_call(graph_module, aten._to_copy.default, (source,), {"dtype": dtype}, before=node)
    zero = _spread(grid.zero_point, grid, rank)
    if bool((zero != 0).any()):
        value = insert_call(
            graph_module, aten.sub.Tensor, (value, insert_constant(graph_module, "zero_points", zero.to(dtype), before=node)), before=node
        )
    scale = insert_constant(graph_module, "scales", _spread(grid.scale, grid, rank).to(dtype), before=node)
    value = insert_call(graph_module, aten.mul.Tensor, (value, scale), before=node)
    return value if group_size is None else insert_call(graph_module, aten.view.default, (value, shape), before=node)


def _spread(part: Any, grid: Quantization, rank: int) -> torch.Tensor:
    """A scale or zero point as a tensor that broadcasts over one of rank ``rank``; over groups, (rows, groups, 1)."""
    tensor = constant_of(part)
    if tensor is None:
        return torch.tensor(part).reshape([1] * rank)
    if grid.group_size is not None:
        return tensor.unsqueeze(-1)
    return tensor.reshape([1] * rank if grid.axis is None else [-1 if d == grid.axis % rank else 1 for d in range(rank)])
