"""commute_quantize: quantizes move up, and dequantizes down, over what does the same to integers as to what they stand for.

So what lies between two int8 layers is in 8 bits: a max pool between a layer and its quantize, a concatenation, a view, a padding, a roll, a relu.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import int8 as _int8  # noqa: F401  (registers the operators)
from ....fused_ops.quantize import quantize as _quantize
from ....lower.graph_edit import call_functions, insert_call, users_of_output
from ....lower.remove_dead_code import remove_dead_code
from .convert_quantize import merge_equal
from .emit import put
from .match import activation_of, arguments_of, dtype_of, is_cast, shape_of
from .quantization import DEQUANTIZE, QUANTIZE, Grid, grid_of, insert_number, is_dequantize, is_quantize

aten = torch.ops.aten

#: The same elements in another shape or order.
_VIEWS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.flatten.using_ints,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.roll.default,
)
_MAX_POOLS = (aten.max_pool2d.default, aten.max_pool3d.default)
_PADS = (aten.constant_pad_nd.default, aten.pad.default)
#: What computes with a weight, and may become an int8 layer.
_LAYERS = (aten.convolution.default, aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default)


def commute_quantize(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of moves.

    Rounding never decreases, so the largest of several values becomes the largest of their integers; a value that only moves becomes an integer
    that moves; with a zero point of 0 a relu is a lower bound of 0. Nothing is rounded twice, and no number changes.
    """
    if not call_functions(graph_module, QUANTIZE, DEQUANTIZE):
        return 0
    count = 0
    while moved := _pass(graph_module):
        count += moved
    if count:
        graph_module.recompile()
    return count


def _pass(graph_module: GraphModule) -> int:
    moved = sum(_sink(graph_module, node) for node in call_functions(graph_module, DEQUANTIZE))
    from_int8 = _from_int8(graph_module)
    moved += sum(_hoist(graph_module, node, from_int8) for node in reversed(call_functions(graph_module, QUANTIZE)))
    moved += merge_equal(graph_module)
    remove_dead_code(graph_module)  # so that "nothing else may read it" is true in the next pass
    return moved


# -- quantizes upwards -------------------------------------------------------------------------------------------------------------------------------


def _hoist(graph_module: GraphModule, node: Node, from_int8: set[Any]) -> bool:
    """Move one quantize over the node before it, which nothing else may read; see ``_from_int8``."""
    source, grid = node.args[0], grid_of(node)
    assert isinstance(source, Node)
    assert grid is not None
    if is_dequantize(source):
        return _cancel(graph_module, node, source, grid)
    if len(source.users) != 1 or source.op != "call_function":
        return False
    if activation_of(source) == ("relu", 0.0) and grid.zero_point == 0 and grid.high >= 0:
        bounded = _quantize_before(graph_module, source.args[0], node, max(grid.low, 0), source)
        put(graph_module, node, bounded)
        return True
    if source not in from_int8:
        return False
    if source.target in _VIEWS:
        quantized = _quantize_before(graph_module, source.args[0], node, grid.low, source)
        target = aten.reshape.default if source.target in (aten.view.default, aten._unsafe_view.default) else source.target
        put(graph_module, node, insert_call(graph_module, target, (quantized, *source.args[1:]), dict(source.kwargs), before=node))
        return True
    if _is_max_pool(source) and grid.dtype is torch.int8:
        quantized = _quantize_before(graph_module, source.args[0], node, grid.low, source)
        put(graph_module, node, _max_pool(graph_module, quantized, source, node))
        return True
    if _is_pad(source):
        quantized = _quantize_before(graph_module, source.args[0], node, grid.low, source)
        value = torch.tensor(float(arguments_of(source)["value"] or 0))
        padding = _quantize(value, torch.tensor(grid.number), grid.zero_point, grid.low, grid.high, torch.int32)
        put(graph_module, node, _pad(graph_module, quantized, source, int(padding), node))
        return True
    if source.target is aten.cat.default:
        parts: Any = [_quantize_before(graph_module, part, node, grid.low, source) for part in source.args[0]]  # type: ignore[union-attr]
        put(graph_module, node, insert_call(graph_module, aten.cat.default, (parts, *source.args[1:]), dict(source.kwargs), before=node))
        return True
    return False


def _cancel(graph_module: GraphModule, node: Node, source: Node, grid: Grid) -> bool:
    """A quantize of what was dequantized from the same grid is the integers themselves, within its bounds."""
    other = grid_of(source)
    integers = source.args[0]
    assert isinstance(integers, Node)
    assert other is not None
    if not grid.is_inverse_of(other):
        return False
    held = grid_of(integers)
    low, high = (held.low, held.high) if is_quantize(integers) and held is not None else (other.low, other.high)
    if grid.low > low or grid.high < high:
        integers = insert_call(graph_module, aten.clamp.default, (integers, grid.low, grid.high), before=node)
    put(graph_module, node, integers)
    return True


def _quantize_before(graph_module: GraphModule, value: Any, node: Node, low: int, before: Node) -> Node:
    """``value`` quantized as ``node`` does, with another lower bound."""
    _, _, zero_point, _, high, dtype = node.args
    grid = grid_of(node)
    assert grid is not None
    inverse = insert_number(graph_module, grid.number, value, before=before)
    return insert_call(graph_module, QUANTIZE, (value, inverse, zero_point, low, high, dtype), before=before, like=node)


def _is_pad(node: Node) -> bool:
    """Whether it pads with one number."""
    return node.target in _PADS and arguments_of(node).get("mode", "constant") == "constant"


def _pad(graph_module: GraphModule, integers: Any, pad: Node, value: int, before: Node) -> Node:
    return insert_call(graph_module, aten.constant_pad_nd.default, (integers, pad.args[1], value), before=before)


def _is_max_pool(node: Node) -> bool:
    """Whether the largest of every window is an element: with padding, the taps of a dilated window may all lie outside."""
    if node.target not in _MAX_POOLS:
        return False
    _, _, padding, dilation = _geometry(node)
    return not any(p and d > 1 for p, d in zip(padding, dilation, strict=True))


def _max_pool(graph_module: GraphModule, integers: Node, pool: Node, before: Node) -> Node:
    ceil_mode = arguments_of(pool)["ceil_mode"]
    return insert_call(graph_module, torch.ops.torchkiln.int8_max_pool.default, (integers, *_geometry(pool), ceil_mode), before=before)


def _geometry(pool: Node) -> list[list[int]]:
    """Kernel size, stride, padding and dilation, each for every axis."""
    given = arguments_of(pool)
    spatial = 3 if pool.target is aten.max_pool3d.default else 2
    sizes = [_per_axis(given[name], spatial) for name in ("kernel_size", "stride", "padding", "dilation")]
    sizes[1] = sizes[1] or sizes[0]
    return sizes


def _per_axis(value: Any, spatial: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * spatial if len(values) == 1 else values


def _from_int8(graph_module: GraphModule) -> set[Any]:
    """The nodes that an int8 layer, a layer norm (which writes integers too) or a dequantize computes, or some of them, up to what a quantize can be
    moved over."""
    found: set[Any] = set()
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _LAYERS:
            is_from = any(is_dequantize(argument) for argument in node.args)
        elif node.target is aten.add.Tensor:
            is_from = any(argument in found for argument in node.args)
        elif node.target is aten.cat.default:
            is_from = any(part in found for part in node.args[0])
        elif node.target in (*_VIEWS, *_MAX_POOLS, *_PADS) or is_cast(node) or activation_of(node) is not None:
            is_from = node.args[0] in found
        else:
            is_from = is_dequantize(node) or node.target is aten.layer_norm.default
        if is_from:
            found.add(node)
    return found


# -- dequantizes downwards ---------------------------------------------------------------------------------------------------------------------------


def _sink(graph_module: GraphModule, node: Node) -> int:
    """Move one dequantize behind those of its users that lead to an int8 layer or a quantize. Returns how many."""
    grid = grid_of(node)
    assert grid is not None
    return sum(_sink_behind(graph_module, node, user, grid) for user in list(node.users) if _leads_to_int8(user))


def _sink_behind(graph_module: GraphModule, node: Node, user: Node, grid: Grid) -> bool:
    integers, scale, zero_point, _ = node.args
    moved: Node | None = None
    if user.target in _VIEWS:
        target = aten.reshape.default if user.target in (aten.view.default, aten._unsafe_view.default) else user.target
        moved = insert_call(graph_module, target, (integers, *user.args[1:]), dict(user.kwargs), before=user)
    elif _is_max_pool(user) and grid.dtype is torch.int8:
        assert isinstance(integers, Node)
        moved = _max_pool(graph_module, integers, user, user)
    elif _is_pad(user) and not arguments_of(user)["value"]:
        moved = _pad(graph_module, integers, user, grid.zero_point, user)
    elif user.target is aten.cat.default and _of_one_grid(user.args[0], grid):
        parts: Any = [part.args[0] for part in user.args[0]]  # type: ignore[union-attr]
        moved = insert_call(graph_module, aten.cat.default, (parts, *user.args[1:]), dict(user.kwargs), before=user)
    if moved is None:
        return False
    put(graph_module, user, insert_call(graph_module, DEQUANTIZE, (moved, scale, zero_point, dtype_of(user)), before=user))
    return True


def _of_one_grid(parts: Any, grid: Grid) -> bool:
    return isinstance(parts, Sequence) and all(is_dequantize(part) and grid_of(part) == grid for part in parts)


def _leads_to_int8(node: Node) -> bool:
    """Whether ``node`` is something to move behind, and an int8 layer, or a quantize, reads it or what is moved behind next."""
    if node.target not in (*_VIEWS, *_MAX_POOLS, *_PADS, aten.cat.default) or users_of_output(node):
        return False
    return any(user.target in (*_LAYERS, QUANTIZE) or _leads_to_int8(user) for user in node.users if shape_of(node))
