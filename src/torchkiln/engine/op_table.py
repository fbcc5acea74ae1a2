"""Which functions an engine file may name: operators registered with torch, a few higher-order ones, arithmetic on sizes.

A name is looked up, never imported or evaluated. An operator that touches files, other processes or raw memory is refused
by name, so a file cannot ask for it.
"""

from __future__ import annotations

import builtins
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
import torch._higher_order_ops
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from ..errors import CorruptEngineFile, TargetMismatch, UserError
from ..quantized_ops import NAMESPACE as QUANTIZED
from ..quantized_ops import register_quantized_ops

#: Namespaces of torch and its libraries that reach outside the graph: files, printing, other processes, streams, raw memory.
REFUSED_NAMESPACES = frozenset(
    [
        "prim",
        "c10d",
        "c10d_functional",
        "_c10d_functional",
        "_c10d_functional_autograd",
        "symm_mem",
        "_dtensor",
        "rpc",
        "fsdp",
        "profiler",
        "onnx",
        "static_runtime",
        "inductor",
        "debugprims",
        "debug_mode_ops",
        "_test",
        "_native",
        "cuda",
        "export",
        "aoti_torch",
        "image",
        "video_reader",
        "torchaudio_sox",
        "torchaudio_ffmpeg",
    ]
)

#: Operators that write or map a file, print, or build a tensor over memory without checking its bounds.
REFUSED_OPERATORS = frozenset(
    [
        "aten::from_file",
        "aten::_print",
        "aten::_nested_view_from_buffer",
        "aten::_nested_view_from_buffer_copy",
        "aten::_sparse_coo_tensor_unsafe",
        "aten::_sparse_coo_tensor_with_dims_and_tensors",
        "aten::segment_reduce",
        "aten::_sparse_compressed_tensor_unsafe",
        "aten::_sparse_csr_tensor_unsafe",
        "aten::_sparse_csc_tensor_unsafe",
        "aten::_sparse_bsr_tensor_unsafe",
        "aten::_sparse_bsc_tensor_unsafe",
    ]
)

#: An operator of any library with a text argument of such a name opens what the text names.
_FILE_ARGUMENT = re.compile(r"file|path|uri|url")

HIGHER_ORDER = ("cond", "while_loop", "auto_functionalized", "auto_functionalized_v2", "wrap_with_set_grad_enabled", "wrap_with_autocast")

_OPERATOR_NAMES = [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "neg",
    "pos",
    "abs",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "and_",
    "or_",
    "xor",
    "not_",
    "lshift",
    "rshift",
    "getitem",
]
_MATH_NAMES = ["ceil", "floor", "trunc", "sqrt"]
_BUILTIN_NAMES = ["int", "float", "bool", "round", "max", "min", "abs"]
_SYM_NAMES = [
    "sym_float",
    "sym_int",
    "sym_ite",
    "sym_max",
    "sym_min",
    "sym_not",
    "sym_sqrt",
    "sym_sum",
    "_sym_sqrt",
    "_sym_cos",
    "_sym_cosh",
    "_sym_sin",
    "_sym_sinh",
    "_sym_tan",
    "_sym_tanh",
    "_sym_asin",
    "_sym_acos",
    "_sym_atan",
    "_sym_log2",
]


def _python_functions() -> dict[str, Callable[..., Any]]:
    groups: list[tuple[str, Any, list[str]]] = [
        ("operator", operator, _OPERATOR_NAMES),
        ("math", math, _MATH_NAMES),
        ("builtins", builtins, _BUILTIN_NAMES),
        ("torch", torch, _SYM_NAMES),
    ]
    return {f"{prefix}.{name}": getattr(module, name) for prefix, module, names in groups for name in names if hasattr(module, name)}


#: Arithmetic on sizes (SymInts), and getitem.
PYTHON_FUNCTIONS = _python_functions()
_PYTHON_NAMES = {function: name for name, function in reversed(PYTHON_FUNCTIONS.items())}


def target_name(target: Any) -> str:
    """The name of a call's target, as ``aten.add.Tensor``, ``higher_order.cond`` or ``operator.mul``.

    Raises UserError for a target that an engine file may not name.
    """
    if isinstance(target, OpOverload):
        reason = _refusal(target)
        if reason:
            raise UserError(f"operator {target}: {reason}; an engine cannot hold it: keep it outside the model")
        return f"{target._schema.name.replace('::', '.')}.{target._schema.overload_name or 'default'}"
    if isinstance(target, HigherOrderOperator) and target.name() in HIGHER_ORDER:
        return f"higher_order.{target.name()}"
    name = _PYTHON_NAMES.get(target) if callable(target) else None
    if name is None:
        raise UserError(f"{target}: expected an operator registered with torch, or one of {', '.join(HIGHER_ORDER)}, or arithmetic on sizes")
    return name


def find_target(name: str) -> Callable[..., Any]:
    """The function of that exact name.

    Raises CorruptEngineFile for a name no engine writes, and TargetMismatch for an operator that is not registered in this process.
    """
    if name in PYTHON_FUNCTIONS:
        return PYTHON_FUNCTIONS[name]
    parts = name.split(".")
    if parts[0] == "higher_order":
        if len(parts) == 2 and parts[1] in HIGHER_ORDER:
            found = getattr(torch.ops.higher_order, parts[1], None)
            if isinstance(found, HigherOrderOperator):
                return found
            raise TargetMismatch(f"operator {name}: torch {torch.__version__} does not have it: load the engine with the torch it was built with")
    elif len(parts) == 3 and all(re.fullmatch(r"[A-Za-z_]\w{0,127}", part, re.ASCII) for part in parts):
        overload = _find_overload(*parts)
        reason = _refusal(overload)
        if reason:
            raise CorruptEngineFile(f"operator {name}: {reason}; no engine holds it, so this file was not written by torchkiln")
        return overload
    raise CorruptEngineFile(f"operator {name[:200]!r}: expected a name as 'aten.add.Tensor', or one of the fixed table in op_table.py")


def _find_overload(namespace: str, operator_name: str, overload_name: str) -> OpOverload:
    name = f"{namespace}.{operator_name}.{overload_name}"
    if namespace == QUANTIZED:
        register_quantized_ops()  # torch's own, but registered by an import of its own
    # torch.ops and its namespaces have methods of their own beside the operators: only these classes are operators.
    packet = getattr(getattr(torch.ops, namespace), operator_name, None) if not hasattr(type(torch.ops), namespace) else None
    if not isinstance(packet, OpOverloadPacket):
        raise TargetMismatch(
            f"operator {name}: not registered in this process: import the library that registers it ({namespace!r}) before loading the engine"
        )
    if overload_name not in packet.overloads():
        raise TargetMismatch(
            f"operator {name}: expected one of the overloads {', '.join(packet.overloads())}: the library that registers it has changed"
        )
    return getattr(packet, overload_name)


def _refusal(overload: OpOverload) -> str:
    """Why an engine may not hold this operator: '' when it may."""
    schema = overload._schema
    if schema.name.split("::")[0] in REFUSED_NAMESPACES:
        return "its library reaches outside the graph"
    if schema.name in REFUSED_OPERATORS:
        return "it reaches outside the graph, to files or unchecked memory"
    for argument in schema.arguments:
        if "str" in str(argument.type) and _FILE_ARGUMENT.search(argument.name):
            return f"its argument {argument.name!r} names a file"
    qualified = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    if not torch._C._dispatch_has_kernel(qualified):
        return "it is TorchScript's own, not a tensor operator"
    return ""
