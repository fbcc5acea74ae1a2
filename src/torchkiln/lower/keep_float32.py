"""keep_float32: which nodes of a graph stay in float32 whatever precision the engine computes in.

It is a mark in ``node.meta``, so every copy of the graph has it: convert_precision reads it for the backends that compile a converted graph,
OpenVINO writes it into its own model, and quantization leaves marked layers alone.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from ..errors import UserError
from .precision_rules import tensors_of

_KEY = "torchkiln_keep_float32"
#: What torch.export calls its own wrapper of a model.
_EXPORT_ROOT = "_export_root"


def is_kept_float32(node: Node) -> bool:
    return bool(node.meta.get(_KEY))


def keep_float32(nodes: Iterable[Node]) -> None:
    """Mark ``nodes``, and the views of their results: a value that is kept must not be rounded on its way to its reader."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if not is_kept_float32(node):
            node.meta[_KEY] = True
            waiting += [user for user in node.users if moves_only(user)]


def keep_named(graph_module: GraphModule, patterns: Collection[str]) -> list[Node]:
    """Mark every node that one of ``patterns`` names (see ``names_of``; wildcards as in file names). Returns them.

    Raises UserError for a pattern that names no node that computes in float32.
    """
    nodes = [node for node in graph_module.graph.nodes if node.op == "call_function" and computes_float32(node)]
    names = {node: names_of(node) for node in nodes}
    found: dict[Node, None] = {}
    for pattern in sorted(patterns):
        named = [node for node in nodes if any(fnmatch.fnmatchcase(name, pattern) for name in names[node])]
        if not named:
            known = sorted({name for own in names.values() for name in own})
            close = difflib.get_close_matches(pattern, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"keep_float32: {pattern!r} names no operator, node or module of the lowered graph that computes in float32{hint}")
        found |= dict.fromkeys(named)
    keep_float32(found)
    return list(found)


def names_of(node: Node) -> list[str]:
    """What a pattern may call a node: its name (with % before it where a module is called the same), its operator ("aten.mul", "aten.mul.Tensor"),
    and every module that it belongs to."""
    operator = str(node.target)
    return [node.name, f"%{node.name}", operator, operator.rpartition(".")[0] or operator, *module_paths(node)]


def module_paths(node: Node) -> list[str]:
    """The modules that a node comes from, outermost first ("encoder", "encoder.norm"); [] where capture kept none."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values() if isinstance(path, str) and path and path.partition(".")[0] != _EXPORT_ROOT]


def computes_float32(node: Node) -> bool:
    """Whether float32 tensors take part in a call."""
    values = [v for n in (node, *node.all_input_nodes) for v in tensors_of(n.meta.get("val"))]
    return any(v.dtype == torch.float32 for v in values)


def moves_only(node: Node) -> bool:
    """Whether a call gives the values of its first argument as they are: a view, or one of several results."""
    return node.op == "call_function" and (
        getattr(node.target, "__name__", "") == "getitem" or (isinstance(node.target, OpOverload) and node.target.is_view)
    )


def shortest_names(chosen: Collection[Node], among: Collection[Node]) -> list[str]:
    """Patterns that name ``chosen`` and nothing else of ``among``: outermost modules where they hold no other, else nodes."""
    others = {name for node in among if node not in chosen for name in names_of(node)}
    names = [next(name for name in (*module_paths(node), node.name, f"%{node.name}") if name not in others) for node in chosen]
    return list(dict.fromkeys(names))
