"""supports: whether torch's ONNX exporter and ONNX Runtime take a node of the lowered graph."""

from __future__ import annotations

import torch
from torch.fx import Node

from ...settings import op_name
from ..contract import Reject
from ..node_values import is_size_arithmetic
from ..plain_reject import plain_reject
from .probe import probe
from .runtime import DTYPES

#: Few of the CPU's kernels take a 16-bit float.
_TAKEN_DTYPES = frozenset(dtype for dtype, _ in DTYPES.values()) - {torch.bfloat16, torch.float16}


def supports(node: Node) -> Reject | None:
    """None when ONNX Runtime's CPU provider runs this ``call_function`` node; else why not.

    What is plain is rejected at once (see plain_reject.py); for the rest the exporter is asked (see probe.py).
    """
    reject = plain_reject(node, "ONNX Runtime", _dtype_reason)
    if reject is not None or is_size_arithmetic(node):
        return reject
    reason = probe(node)
    return Reject(op_name(node.target), reason) if reason else None


def _dtype_reason(dtype: torch.dtype) -> str:
    return "" if dtype in _TAKEN_DTYPES else f"ONNX Runtime's CPU kernels do not take {dtype}"
