"""supports: what is plain at once about a node of the lowered graph. What only the parser knows is asked in examine.py."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..contract import Reject
from ..plain_reject import NAMESPACES, plain_reject

_FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn}
_TAKEN_DTYPES = frozenset(_FLOATS | {torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool})


def supports(node: Node) -> Reject | None:
    """None when TensorRT may take this ``call_function`` node; else why not (see plain_reject.py)."""
    return plain_reject(node, "TensorRT", _dtype_reason, (*NAMESPACES, "quantized_decomposed"))


def _dtype_reason(dtype: torch.dtype) -> str:
    return "" if dtype in _TAKEN_DTYPES else f"TensorRT does not take {dtype}"
