"""supports: whether OpenVINO takes a node of the lowered graph."""

from __future__ import annotations

import torch
from torch.fx import Node

from ...quantized_ops import NAMESPACE as QUANTIZED
from ...quantized_ops import is_quantized_op
from ...settings import op_name
from ..contract import Reject
from ..node_values import is_size_arithmetic
from ..plain_reject import NAMESPACES, plain_reject
from .probe import probe
from .quantized import is_part_of_constant, quantized_reason
from .runtime import DTYPES

_TAKEN_DTYPES = frozenset(DTYPES.values()) - {torch.float64}


def supports(node: Node) -> Reject | None:
    """None when OpenVINO translates this ``call_function`` node and computes what PyTorch computes; else why not.

    Rejected at once: operators outside PyTorch's own namespaces, control flow, random operators, outputs whose shape depends on the data,
    complex numbers and float64 (which OpenVINO computes in float32). The rest is tried out: see probe.py.
    """
    reject = plain_reject(node, "OpenVINO", _dtype_reason, (*NAMESPACES, QUANTIZED))
    if reject is not None or is_size_arithmetic(node) or is_part_of_constant(node):
        return reject
    reason = quantized_reason(node) if is_quantized_op(node) else probe(node)
    return Reject(op_name(node.target), reason) if reason else None


def _dtype_reason(dtype: torch.dtype) -> str:
    if dtype in _TAKEN_DTYPES:
        return ""
    return "OpenVINO on the CPU computes float64 in float32" if dtype is torch.float64 else f"OpenVINO on the CPU has no {dtype}"
