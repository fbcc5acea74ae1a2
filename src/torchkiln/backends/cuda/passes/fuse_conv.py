"""fuse_conv: every convolution becomes ``torchkiln::conv``, with the residual addition and the activation after it."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import conv as _conv  # noqa: F401  (registers the operator)
from ....lower.graph_edit import call_functions
from ....lower.remove_dead_code import remove_dead_code
from ..is_matrix_product import is_matrix_product
from .emit import emit
from .epilogue import Epilogue, fuse_activations, fuse_residuals
from .match import FLOATS, arguments_of, dtype_of, is_cast, reject, shape_of

aten = torch.ops.aten

#: Up to how many input channels a convolution reads the graph's float32 input itself: with few, the cast would cost more than it saves.
MOST_CAST_CHANNELS = 16


def _is_product(conv: Node) -> bool:
    """Whether the convolution is one matrix product: tactics of those add a residual at the speed of memory, others seldom."""
    arguments = arguments_of(conv)
    return is_matrix_product(shape_of(conv.args[1]), *(arguments[name] for name in ("stride", "padding", "transposed", "groups")))


_EPILOGUE = Epilogue(torch.ops.torchkiln.conv.default, residual=3, activation=11, alpha=12, suits_residual=_is_product)


def fuse_conv(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of convolutions and of what was fused into them.

    * ``convolution(x)`` -> ``torchkiln.conv``; those that other passes made take part in what follows.
    * ``conv + other``, of the same shape and dtype -> the residual of conv, in the place of the addition.
    * ``activation(conv)`` -> the activation of conv.
    * a cast of the graph's float32 input that a convolution of few channels alone reads is left to it.

    What is between must have no other reader. What is nearly so is left as it is, and (node, reason) appended to
    ``graph_module.meta["rejects"]``.
    """
    graph_module.meta.setdefault("rejects", [])
    count = 0
    for node in call_functions(graph_module, aten.convolution.default):
        reason = _why_not(node)
        if reason:
            reject(graph_module, node, reason)
            continue
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
        source = _uncast_input(x, groups)
        args = (source, weight, bias, None, None, stride, padding, dilation, transposed, output_padding, groups, "none", 0.0)
        emit(graph_module, node, _EPILOGUE.target, args)
        count += 1 + (source is not x)
    count += fuse_residuals(graph_module, _EPILOGUE)
    count += fuse_activations(graph_module, _EPILOGUE)
    remove_dead_code(graph_module)
    graph_module.recompile()
    return count


def _why_not(node: Node) -> str:
    if dtype_of(node) not in FLOATS:
        return f"a convolution in {dtype_of(node)}"
    rank = len(shape_of(node.args[0]))
    if rank not in (3, 4, 5):
        return f"x has {rank} dimensions: expected 3, 4 or 5, with the batch"
    return ""


def _uncast_input(x: Any, groups: Any) -> Any:
    """What the convolution reads instead of ``x``: the graph's float32 input, when x is a cast of it for this convolution alone."""
    if not is_cast(x) or len(x.users) != 1 or groups != 1 or shape_of(x)[1] > MOST_CAST_CHANNELS:
        return x
    source = x.args[0]
    return source if source.op == "placeholder" and dtype_of(source) == torch.float32 else x
