"""supports: whether OpenVINO takes a node of the lowered graph."""

from __future__ import annotations

import torch
from torch._ops import OpOverload
from torch.fx import Node

from ...settings import op_name
from ..contract import Reject
from ..node_values import is_effect, is_random, is_size_arithmetic, is_unbacked, tensors_of, values_of
from .probe import probe
from .runtime import DTYPES

#: Operator namespaces that OpenVINO's frontend has translations for.
_NAMESPACES = ("aten", "prims", "torchvision")
_TAKEN_DTYPES = frozenset(DTYPES.values()) - {torch.float64}


def supports(node: Node) -> Reject | None:
    """None when OpenVINO translates this ``call_function`` node and computes what PyTorch computes; else why not.

    Rejected at once: operators outside PyTorch's own namespaces, control flow, random operators, outputs whose shape depends on the data,
    complex numbers and float64 (which OpenVINO computes in float32). The rest is tried out: see probe.py.
    """
    name = op_name(node.target)
    if not isinstance(node.target, OpOverload):
        reason = "is control flow or a Python function, which OpenVINO does not take"
        return None if is_size_arithmetic(node) else Reject(getattr(node.target, "__name__", name), reason)
    if node.target.namespace not in _NAMESPACES:
        return Reject(name, "is a custom operator, which OpenVINO does not know")
    if is_effect(node):
        return Reject(name, "is a run-time check or a side effect")
    if is_random(node):
        return Reject(name, "is random: OpenVINO's random numbers are not PyTorch's")
    if any(is_unbacked(value) for value in values_of(node)):
        return Reject(name, "the shape of its input or output depends on the data")
    for value in tensors_of(node):
        if value.dtype not in _TAKEN_DTYPES:
            how = "computes float64 in float32" if value.dtype is torch.float64 else f"has no {value.dtype}"
            return Reject(name, f"OpenVINO on the CPU {how}")
    reason = probe(node)
    return Reject(name, reason) if reason else None
