"""fuse_norms: layer, group and instance norms and softmaxes take in the casts around them, group norms a residual and an activation too."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import norms as _norms  # noqa: F401  (registers the operators)
from ....lower.graph_edit import call_functions
from ....lower.remove_dead_code import remove_dead_code
from .emit import emit, put
from .epilogue import Epilogue, fuse_activations, fuse_residuals
from .match import FLOATS, Refused, arguments_of, dtype_of, narrowing_users, reject, shape_of, widened

aten = torch.ops.aten

_LAYER_NORM = torch.ops.torchkiln.layer_norm.default
_GROUP_NORM = torch.ops.torchkiln.group_norm.default
_SOFTMAX = torch.ops.torchkiln.softmax.default

_EPILOGUE = Epilogue(_GROUP_NORM, residual=4, activation=6, alpha=7, is_residual_any_float=True)
_SOURCES = (aten.layer_norm.default, aten.group_norm.default, aten.instance_norm.default, aten.softmax.int, aten._softmax.default)


def fuse_norms(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of norms and softmaxes, and of what was fused into them.

    A cast from fp16 or bf16 before is read through, and casts to one of them after are taken in when nobody reads the float32 result. A group
    norm (an instance norm is one, with as many groups as channels) takes an addition of the same shape and then an activation.

    What is refused is left as it is, and (node, reason) appended to ``graph_module.meta["rejects"]``.
    """
    graph_module.meta.setdefault("rejects", [])
    count = 0
    for node in call_functions(graph_module, *_SOURCES):
        try:
            target, args = _rewritten(node)
        except Refused as refused:
            reject(graph_module, node, str(refused))
            continue
        emit(graph_module, node, target, args)
        count += 1
    # Casts first, so that the addition and the activation follow directly; then those after them.
    count += _narrow(graph_module)
    found = fuse_residuals(graph_module, _EPILOGUE) + fuse_activations(graph_module, _EPILOGUE)
    count += found + (_narrow(graph_module) if found else 0)
    remove_dead_code(graph_module)
    graph_module.recompile()
    return count


def _rewritten(node: Node) -> tuple[Any, tuple[Any, ...]]:
    """The op for ``node`` and its arguments."""
    given = arguments_of(node)
    x = given["self"] if "self" in given else given["input"]
    dtype = dtype_of(node)
    if dtype not in FLOATS or dtype_of(x) not in FLOATS:
        raise Refused(f"computes {dtype} of {dtype_of(x)}")
    source = widened(x)
    if node.target is aten.layer_norm.default:
        return _LAYER_NORM, (source, given["normalized_shape"], given["weight"], given["bias"], given["eps"], dtype)
    if node.target in (aten.softmax.int, aten._softmax.default):
        if dtype_of(x) != dtype and dtype != torch.float32:
            raise Refused(f"rounds its argument to {dtype} first")
        return _SOFTMAX, (source, given["dim"], dtype)
    groups = given.get("num_groups")
    if node.target is aten.instance_norm.default:
        if not given["use_input_stats"] or given["running_mean"] is not None or given["running_var"] is not None:
            raise Refused("an instance norm with running statistics")
        groups = shape_of(x)[1]
    return _GROUP_NORM, (source, groups, given["weight"], given["bias"], None, given["eps"], "none", 0.0, dtype)


def _narrow(graph_module: GraphModule) -> int:
    """Let ops whose result is only ever cast to one narrower dtype give that. Returns the number of casts taken in."""
    count = 0
    for node in call_functions(graph_module, _LAYER_NORM, _GROUP_NORM, _SOFTMAX):
        casts = narrowing_users(node)
        if not casts:
            continue
        narrow = emit(graph_module, node, node.target, (*node.args[:-1], dtype_of(casts[0])))  # type: ignore[arg-type]
        for cast in casts:
            put(graph_module, cast, narrow)
        count += len(casts)
    return count
