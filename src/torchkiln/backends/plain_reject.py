"""plain_reject: what is plain at once about a node, the same for every library that graphs are converted for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._ops import OpOverload
from torch.fx import Node

from ..settings import op_name
from .contract import Reject
from .node_values import is_effect, is_random, is_size_arithmetic, is_unbacked, tensors_of, values_of

#: Namespaces of operators that converters have translations for.
NAMESPACES = ("aten", "prims", "torchvision")


def plain_reject(node: Node, library: str, dtype_reason: Callable[[torch.dtype], str], namespaces: tuple[str, ...] = NAMESPACES) -> Reject | None:
    """Why a ``call_function`` node cannot go to ``library``: custom, random and data-dependent operators, control flow, other dtypes; else None.

    Args:
        dtype_reason: why the library does not take a dtype; "" when it does.
    """
    name = op_name(node.target)
    if not isinstance(node.target, OpOverload):
        reason = f"is control flow or a Python function, which {library} does not take"
        return None if is_size_arithmetic(node) else Reject(getattr(node.target, "__name__", name), reason)
    if node.target.namespace not in namespaces:
        return Reject(name, f"is a custom operator, which {library} does not know")
    if is_effect(node):
        return Reject(name, "is a run-time check or a side effect")
    if is_random(node):
        return Reject(name, f"is random: {library}'s random numbers are not PyTorch's")
    if any(is_unbacked(value) for value in values_of(node)):
        return Reject(name, "the shape of its input or output depends on the data")
    reasons = (dtype_reason(value.dtype) for value in tensors_of(node))
    reason = next(filter(None, reasons), "")
    return Reject(name, reason) if reason else None
