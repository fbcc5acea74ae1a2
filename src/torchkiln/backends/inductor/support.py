"""supports: whether AOTInductor takes a node of the lowered graph."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Node

from ...quantized_ops import NAMESPACE as QUANTIZED
from ...settings import op_name
from ..contract import Reject
from ..node_values import is_unbacked, values_of

_NAMESPACES = ("aten", "prims", QUANTIZED)
_PYTHON_MODULES = ("_operator", "operator", "math", "builtins", "torch")


def supports(node: Node) -> Reject | None:
    """None when AOTInductor takes this ``call_function`` node; else why not.

    It has a kernel or a fallback for nearly all of ATen. Rejected are: custom operators (the package would need their library at load),
    control flow, random operators (the numbers would not be PyTorch's), and shapes that depend on the data.
    """
    target = node.target
    name = op_name(target)
    if isinstance(target, HigherOrderOperator):
        return Reject(target.name(), "is control flow, which is left to PyTorch")
    if not isinstance(target, OpOverload):
        if getattr(target, "__module__", "") in _PYTHON_MODULES:
            return None
        return Reject(getattr(target, "__name__", name), "is a Python function, not an operator")
    if target.namespace not in _NAMESPACES:
        return Reject(name, "is a custom operator: a package with it would need its library to be loaded first")
    if torch.Tag.nondeterministic_seeded in target.tags and _draws(node, target):
        return Reject(name, "is random: Inductor's random numbers are not PyTorch's")
    if any(map(is_unbacked, values_of(node))):
        return Reject(name, "works on a size that depends on the data")
    return None


#: Arguments that turn an operator's random part off, as in attention with dropout_p=0: argument name -> value.
_RANDOM_OFF: dict[str, Any] = {"dropout_p": 0.0, "train": False, "training": False}


def _draws(node: Node, target: OpOverload) -> bool:
    """Whether a call of an operator that can draw random numbers does."""
    for index, argument in enumerate(target._schema.arguments):
        if argument.name in _RANDOM_OFF:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            if value == _RANDOM_OFF[argument.name]:
                return False
    return True
