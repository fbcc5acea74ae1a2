"""hoist_linear_views: views and permutations between a linear layer and the addition after it go elsewhere, so that the two can be fused.

``add(permute(linear(x)), r)`` is ``permute(add(linear(x), permute_back(r)))``, and a view that changes leading dimensions only can be taken of x as
well as of the product. torchvision's attention blocks are of that form: they compute with the sequence first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import int8 as _int8  # noqa: F401  (registers the operators)
from ....fused_ops import linear as _linear  # noqa: F401
from ....lower.graph_edit import call_functions, insert_call
from ....lower.remove_dead_code import remove_dead_code
from .emit import put

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def hoist_linear_views(graph_module: GraphModule) -> int:
    """Rewrite in place; returns the number of views moved."""
    moved = sum(_hoist_view(graph_module, view) for view in call_functions(graph_module, *_VIEWS))
    moved += sum(_sink_permutation(graph_module, add) for add in call_functions(graph_module, aten.add.Tensor))
    if moved:
        remove_dead_code(graph_module)
        graph_module.recompile()
    return moved


def _hoist_view(graph_module: GraphModule, view: Node) -> bool:
    linear: Any = view.args[0]
    if not _is_linear(linear) or len(linear.users) != 1 or not any(_leads_to_add(user) for user in view.users):
        return False
    shape, features = tuple(view.meta["val"].shape), linear.meta["val"].shape[-1]
    if len(shape) < 2 or shape[-1] != features:
        return False
    x: Any = linear.args[0]
    viewed = insert_call(graph_module, aten.reshape.default, (x, [*shape[:-1], x.meta["val"].shape[-1]]), before=linear, like=view)
    product = insert_call(graph_module, linear.target, (viewed, *linear.args[1:]), dict(linear.kwargs), before=linear, like=linear)
    put(graph_module, view, product)
    graph_module.graph.erase_node(linear)
    return True


def _sink_permutation(graph_module: GraphModule, add: Node) -> bool:
    if add.kwargs.get("alpha", 1) != 1:
        return False
    for index in (0, 1):
        permute, other = add.args[index], add.args[1 - index]
        if not isinstance(permute, Node) or not isinstance(other, Node) or permute.target is not aten.permute.default or len(permute.users) != 1:
            continue
        linear, dims = permute.args[0], [int(d) % permute.meta["val"].dim() for d in permute.args[1]]  # type: ignore[arg-type, union-attr]
        value, addend = permute.meta["val"], other.meta["val"]
        same = tuple(value.shape) == tuple(addend.shape) and value.dtype == addend.dtype
        if not _is_linear(linear) or len(linear.users) != 1 or dims[-1] != len(dims) - 1 or not same:  # type: ignore[union-attr]
            continue
        back = insert_call(graph_module, aten.permute.default, (other, [dims.index(d) for d in range(len(dims))]), before=add, like=permute)
        summed = insert_call(graph_module, aten.add.Tensor, (linear, back), before=add, like=add)
        put(graph_module, add, insert_call(graph_module, aten.permute.default, (summed, dims), before=add, like=permute))
        return True
    return False


def _is_linear(node: Any) -> bool:
    ops = torch.ops.torchkiln
    return isinstance(node, Node) and node.target in (aten.linear.default, ops.linear.default, ops.int8_linear.default)


def _leads_to_add(node: Node) -> bool:
    return node.target is aten.add.Tensor or (node.target is aten.permute.default and any(u.target is aten.add.Tensor for u in node.users))
