"""onnx_support: what is plain at once about a node that is to go to ONNX, the same for every library that reads ONNX."""

from __future__ import annotations

import torch
from torch._ops import OpOverload
from torch.fx import Node

from ..settings import op_name
from .contract import Reject
from .node_values import is_effect, is_random, is_size_arithmetic, is_unbacked, tensors_of, values_of

#: Operator namespaces that torch's exporter has ONNX forms for.
_NAMESPACES = ("aten", "prims", "torchvision", "quantized_decomposed")


def plain_reject(node: Node, library: str, taken_dtypes: frozenset[torch.dtype]) -> Reject | None:
    """Why a ``call_function`` node cannot go to ``library``: custom, random and data-dependent operators, control flow, other dtypes; else None."""
    name = op_name(node.target)
    if not isinstance(node.target, OpOverload):
        reason = "is control flow or a Python function, which is not exported to ONNX"
        return None if is_size_arithmetic(node) else Reject(getattr(node.target, "__name__", name), reason)
    if node.target.namespace not in _NAMESPACES:
        return Reject(name, "is a custom operator, which ONNX does not know")
    if is_effect(node):
        return Reject(name, "is a run-time check or a side effect")
    if is_random(node):
        return Reject(name, f"is random: {library}'s random numbers are not PyTorch's")
    if any(is_unbacked(value) for value in values_of(node)):
        return Reject(name, "the shape of its input or output depends on the data")
    for value in tensors_of(node):
        if value.dtype not in taken_dtypes:
            return Reject(name, f"{library} does not take {value.dtype}")
    return None
