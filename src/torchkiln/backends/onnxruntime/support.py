"""supports: whether torch's ONNX exporter and ONNX Runtime take a node of the lowered graph."""

from __future__ import annotations

import torch
from torch._ops import OpOverload
from torch.fx import Node

from ...settings import op_name
from ..contract import Reject
from ..node_values import is_effect, is_random, is_size_arithmetic, is_unbacked, tensors_of, values_of
from .probe import probe
from .runtime import DTYPES

_NAMESPACES = ("aten", "prims", "torchvision")
#: Few of the CPU's kernels take a 16-bit float.
_TAKEN_DTYPES = frozenset(dtype for dtype, _ in DTYPES.values()) - {torch.bfloat16, torch.float16}


def supports(node: Node) -> Reject | None:
    """None when ONNX Runtime runs this ``call_function`` node; else why not.

    Custom, random and data-dependent operators, control flow, and dtypes the CPU kernels lack are rejected at once; for the rest the exporter
    is asked (see probe.py).
    """
    name = op_name(node.target)
    if not isinstance(node.target, OpOverload):
        reason = "is control flow or a Python function, which is not exported to ONNX"
        return None if is_size_arithmetic(node) else Reject(getattr(node.target, "__name__", name), reason)
    if node.target.namespace not in _NAMESPACES:
        return Reject(name, "is a custom operator, which ONNX does not know")
    if is_effect(node):
        return Reject(name, "is a run-time check or a side effect")
    if is_random(node):
        return Reject(name, "is random: ONNX Runtime's random numbers are not PyTorch's")
    if any(is_unbacked(value) for value in values_of(node)):
        return Reject(name, "the shape of its input or output depends on the data")
    for value in tensors_of(node):
        if value.dtype not in _TAKEN_DTYPES:
            return Reject(name, f"ONNX Runtime's CPU kernels do not take {value.dtype}")
    reason = probe(node)
    return Reject(name, reason) if reason else None
