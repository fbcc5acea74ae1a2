"""supports: whether the CUDA backend takes a node: as a kernel of its own or, captured with the rest, as an operator of torch."""

from __future__ import annotations

import torch
from torch._ops import OpOverload
from torch.fx import Node

from ...lower.graph_edit import constant_of
from ...quantized_ops import NAMESPACE as QUANTIZED
from ...quantized_ops import is_quantized_op, read_quantization
from ...settings import op_name
from ..contract import Reject
from ..plain_reject import plain_reject
from .quantized_reason import why_not_a_number

#: Operators of torch that wait for the GPU or copy to the CPU, which a CUDA graph cannot hold.
_WAITS = ("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.unique", "aten.masked_select", "aten.equal", "aten.is_nonzero")

#: Views by strides or by bytes.
_BY_MEMORY = ("aten.as_strided", "aten.view.dtype")


def supports(node: Node) -> Reject | None:
    """None when it is taken: any plain operator of ATen whose shapes do not depend on the data."""
    name = op_name(node.target)
    if name.startswith(_WAITS):
        return Reject(name, "waits for the GPU, which a CUDA graph cannot hold")
    if name.startswith(_BY_MEMORY):
        return Reject(name, "means memory as PyTorch lays it out, which is not how the engine does")
    if isinstance(node.target, OpOverload) and any(a.alias_info is not None and a.alias_info.is_write for a in node.target._schema.arguments):
        return Reject(name, "writes into its argument")
    if is_quantized_op(node):
        reason = _quantized_reason(node)
        if reason:
            return Reject(name, reason)
    return plain_reject(node, "the CUDA backend", _dtype_reason, ("aten", "torchkiln", QUANTIZED))


def _quantized_reason(node: Node) -> str:
    """Why a quantize or dequantize is not taken: "" when it is one of 8 bits by one number, or of a constant."""
    grid = read_quantization(node)
    if constant_of(grid.source) is not None:
        numbers = (part is None or isinstance(part, (int, float)) or constant_of(part) is not None for part in (grid.scale, grid.zero_point))
        return "" if all(numbers) else "its scale is computed"
    return why_not_a_number(grid)


def _dtype_reason(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex tensors stay in PyTorch"
    return ""
