"""fuse_int8_epilogues: what follows the sums of int8 layers becomes part of them: residual, activation, and the quantize or cast of the result."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....lower.graph_edit import call_functions
from ....lower.remove_dead_code import remove_dead_code
from .emit import emit
from .epilogue import Epilogue, fuse_activations, fuse_residuals
from .fuse_int8 import INT8_CONV, INT8_LINEAR
from .match import dtype_of, is_cast, reject
from .quantization import grid_of, insert_number, is_dequantize, is_quantize

_EPILOGUES = (
    Epilogue(INT8_CONV, residual=4, activation=10, alpha=11),
    Epilogue(INT8_LINEAR, residual=4, activation=7, alpha=8),
)
#: Positions of the other arguments of the epilogue.
_RESIDUAL, _RESIDUAL_SCALE, _INVERSE = 4, 5, 6


def fuse_int8_epilogues(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns how much was fused.

    * an addition of the same shape and dtype, and an activation, as for floating layers (see epilogue.py);
    * a residual that is dequantized is read in 8 bits;
    * the quantize that alone reads the result: it is written in 8 bits, and never in floating point;
    * a cast that alone reads it: it is rounded once, to that dtype.

    What is nearly so is left as it is, and (node, reason) appended to ``graph_module.meta["rejects"]``.
    """
    graph_module.meta.setdefault("rejects", [])
    if not call_functions(graph_module, INT8_CONV, INT8_LINEAR):
        return 0
    count = 0
    for epilogue in _EPILOGUES:
        count += fuse_residuals(graph_module, epilogue)
        count += fuse_activations(graph_module, epilogue)
    for node in call_functions(graph_module, INT8_CONV, INT8_LINEAR):
        count += _read_integers(graph_module, node)
    for node in call_functions(graph_module, INT8_CONV, INT8_LINEAR):
        count += _write_result(graph_module, node)
    remove_dead_code(graph_module)
    graph_module.recompile()
    return count


def _read_integers(graph_module: GraphModule, node: Node) -> bool:
    residual = node.args[_RESIDUAL]
    grid = grid_of(residual)
    if not is_dequantize(residual) or grid is None or not grid.is_symmetric:
        return False
    assert isinstance(residual, Node)
    args = list(node.args)
    args[_RESIDUAL], args[_RESIDUAL_SCALE] = residual.args[0], insert_number(graph_module, grid.number, node, before=node)
    emit(graph_module, node, node.target, args)  # type: ignore[arg-type]
    return True


def _write_result(graph_module: GraphModule, node: Node) -> bool:
    readers = list(node.users)
    quantizes = [user for user in readers if is_quantize(user)]
    if len(readers) != 1:
        if quantizes:
            reject(graph_module, node, f"{quantizes[0].name} quantizes it, but it has {len(readers)} readers: it is written in {dtype_of(node)} too")
        return False
    (user,) = readers
    args: list[Any] = list(node.args)
    if is_cast(user):
        args[-1] = dtype_of(user)
    elif quantizes:
        grid = grid_of(user)
        assert grid is not None
        if not grid.is_symmetric:
            kind = f"{grid.dtype} with the zero point {grid.zero_point}"
            reject(graph_module, node, f"{user.name} quantizes it to {kind}: kernels write torch.int8 with 0")
            return False
        args[_INVERSE] = insert_number(graph_module, grid.number, node, before=node)
        args[-3:] = [grid.low, grid.high, torch.int8]
    else:
        return False
    emit(graph_module, user, node.target, args)  # type: ignore[arg-type]
    graph_module.graph.erase_node(node)
    return True
