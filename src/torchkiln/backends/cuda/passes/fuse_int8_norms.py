"""fuse_int8_norms: a layer norm whose result is quantized writes the integers itself, and beside them what others read."""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import int8 as _int8  # noqa: F401  (registers the operators)
from ....fused_ops import norms as _norms  # noqa: F401
from ....lower.graph_edit import call_functions, insert_call
from ....lower.remove_dead_code import remove_dead_code
from .emit import emit, put
from .match import dtype_of, is_cast, reject
from .quantization import grid_of, insert_number, is_quantize

_LAYER_NORM = torch.ops.torchkiln.layer_norm.default
_INT8_LAYER_NORM = torch.ops.torchkiln.int8_layer_norm.default
_BOTH = torch.ops.torchkiln.int8_layer_norm_both.default


def fuse_int8_norms(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of layer norms.

    Where all other readers cast the result to one dtype, it is written in that dtype. A quantize that is refused stays as it is, and (node, reason)
    is appended to ``graph_module.meta["rejects"]``.
    """
    graph_module.meta.setdefault("rejects", [])
    count = 0
    for node in call_functions(graph_module, _LAYER_NORM):
        quantizes = [user for user in node.users if is_quantize(user)]
        if not quantizes:
            continue
        grid = grid_of(quantizes[0])
        assert grid is not None
        if len(quantizes) > 1 or not grid.is_symmetric:
            kind = "by several scales" if len(quantizes) > 1 else f"to {grid.dtype} with the zero point {grid.zero_point}"
            reject(graph_module, node, f"{quantizes[0].name} quantizes it {kind}: a layer norm writes torch.int8 by one scale, with 0")
            continue
        inverse = insert_number(graph_module, grid.number, node, before=node)
        args = (*node.args[:5], inverse, grid.low, grid.high)
        if len(node.users) == 1:
            emit(graph_module, quantizes[0], _INT8_LAYER_NORM, args)
        else:
            _write_both(graph_module, node, quantizes[0], args)
        count += 1
    if count:
        remove_dead_code(graph_module)
        graph_module.recompile()
    return count


def _write_both(graph_module: GraphModule, node: Node, quantize: Node, args: tuple[object, ...]) -> None:
    others = [user for user in node.users if user is not quantize]
    dtypes = {dtype_of(user) for user in others if is_cast(user)}
    is_cast_by_all = len(dtypes) == 1 and all(is_cast(user) for user in others)
    dtype = dtypes.pop() if is_cast_by_all else dtype_of(node)
    both = insert_call(graph_module, _BOTH, (*args, dtype), before=node)
    integers, values = (insert_call(graph_module, operator.getitem, (both, index), before=node) for index in (0, 1))
    put(graph_module, quantize, integers)
    for reader in others if is_cast_by_all else [node]:
        put(graph_module, reader, values)
