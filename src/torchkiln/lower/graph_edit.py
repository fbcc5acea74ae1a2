"""graph_edit: the few ways in which passes change a graph, each keeping the invariants of program.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves


def insert_call(
    graph_module: GraphModule,
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    before: Node,
    like: Node | None = None,
) -> Node:
    """Insert ``target(*args, **kwargs)`` before a node; its ``meta["val"]`` is computed with fake tensors, so symbolic shapes stay symbolic.

    ``like`` (default: ``before``) is the node whose stack trace the new one carries.
    """
    with graph_module.graph.inserting_before(before):
        node = graph_module.graph.call_function(target, tuple(args), dict(kwargs or {}))
    trace = (like or before).meta.get("stack_trace")
    if trace:
        node.meta["stack_trace"] = trace
    refresh_value(graph_module, node)
    return node


def refresh_value(graph_module: GraphModule, node: Node) -> None:
    """Compute ``node.meta["val"]`` anew from the values of its arguments."""
    args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
    assert callable(node.target)
    with fake_mode_of(graph_module), torch.no_grad():
        node.meta["val"] = node.target(*args, **kwargs)


def insert_constant(graph_module: GraphModule, name: str, tensor: torch.Tensor, *, before: Node) -> Node:
    """Register ``tensor`` under a name like ``name`` and insert the ``get_attr`` node that reads it."""
    attribute = unique_name(graph_module, name)
    graph_module.register_buffer(attribute, tensor.detach())
    with graph_module.graph.inserting_before(before):
        node = graph_module.graph.get_attr(attribute)
    node.meta["val"] = fake_mode_of(graph_module).from_tensor(tensor.detach(), static_shapes=True)
    return node


def unique_name(graph_module: GraphModule, name: str) -> str:
    """``name`` as an identifier that is no attribute of the module yet."""
    base = re.sub(r"\W", "_", name)
    if not base or base[0].isdigit():
        base = f"t_{base}"
    unique, number = base, 0
    while hasattr(graph_module, unique):
        number += 1
        unique = f"{base}_{number}"
    return unique


def constant_of(node: Any) -> torch.Tensor | None:
    """The tensor that ``node`` reads, when it is a ``get_attr`` of a tensor; None for anything else."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    owner = node.graph.owning_module
    assert owner is not None
    assert isinstance(node.target, str)
    value = getattr(owner, node.target, None)
    return value if isinstance(value, torch.Tensor) else None


def fake_mode_of(graph_module: GraphModule) -> FakeTensorMode:
    """The fake mode (and with it the symbolic sizes) that the graph was captured under."""
    for node in graph_module.graph.nodes:
        for value in tree_leaves(node.meta.get("val")):
            if isinstance(value, FakeTensor):
                return value.fake_mode
    return FakeTensorMode()


def replace(node: Node, replacement: Node) -> None:
    """Let every user of ``node`` read ``replacement``, and erase ``node``."""
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def users_of_output(node: Node) -> bool:
    """Whether the caller gets ``node`` itself."""
    return any(user.op == "output" for user in node.users)


def is_pure(node: Node) -> bool:
    """Whether ``node`` is an operator whose result depends on its arguments alone: no randomness, no mutation, no assertion."""
    target = node.target
    if node.op != "call_function" or node.is_impure():
        return False
    if not isinstance(target, OpOverload):
        return getattr(target, "__module__", "") in ("_operator", "math") or target in _SYMBOLIC_FUNCTIONS
    if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
        return False
    return target.namespace in ("aten", "prims") and not target._schema.name.split("::")[1].lstrip("_").startswith(_NOT_PURE)


#: aten operators without outputs that read a value, and those whose result is whatever the memory held.
_NOT_PURE = ("assert", "sym_constrain", "empty", "new_empty", "print")
_SYMBOLIC_FUNCTIONS = (torch.sym_max, torch.sym_min, torch.sym_float, torch.sym_int, torch.sym_not, torch.sym_ite, torch.sym_sum)


def call_functions(graph_module: GraphModule, *targets: Callable[..., Any]) -> list[Node]:
    """The calls of ``targets``, in order."""
    return [node for node in graph_module.graph.nodes if node.op == "call_function" and node.target in targets]


def is_same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal in every call, as far as the symbols tell."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(a == b)


def is_same_sizes(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes (or strides) are equal in every call."""
    return len(a) == len(b) and all(is_same_size(x, y) for x, y in zip(a, b, strict=True))
