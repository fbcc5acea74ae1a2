"""fold_constants: compute at build what does not depend on an input, and keep the results as constants of the module.

Guards: random draws, mutation, uninitialised memory and operators of other libraries are left alone; a result that is only an
expansion of something smaller (``expand``, ``full``) stays an operator; all results together may exceed what they were computed
from by FOLD_LIMIT_BYTES at most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from .graph_edit import constant_of, insert_constant, is_pure, replace, users_of_output

#: Bytes by which folding may make the engine larger. A shifted-window mask of a 3-D network takes some 150 MB.
FOLD_LIMIT_BYTES = 256 << 20

#: Expansions up to this many elements are folded: one small constant is simpler than an operator.
SMALL_NUMEL = 64

aten = torch.ops.aten
_FILLS = {
    aten.full.default,
    aten.zeros.default,
    aten.ones.default,
    aten.full_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.new_full.default,
    aten.new_zeros.default,
    aten.new_ones.default,
}
_EXPANSIONS = _FILLS | {aten.expand.default, aten.repeat.default}


def fold_constants(graph_module: GraphModule, limit_bytes: int = FOLD_LIMIT_BYTES) -> int:
    """Returns the number of nodes replaced by a constant or a literal number."""
    folded = _fold_numbers(graph_module)
    folded += _Folding(graph_module, limit_bytes).run()
    if folded:
        graph_module.recompile()
    return folded


def _fold_numbers(graph_module: GraphModule) -> int:
    """Put sizes that are the same in every call into the arguments that read them. The output keeps its nodes."""
    folded = 0
    for node in list(graph_module.graph.nodes):
        number = _number_of(node)
        if number is None or not is_pure(node):
            continue
        for user in list(node.users):
            if user.op != "output":
                _put_number(user, node, number)
                folded += 1
    return folded


def _put_number(user: Node, node: Node, number: float) -> None:
    user.args, user.kwargs = map_arg((user.args, user.kwargs), lambda n: number if n is node else n)


def _number_of(node: Node) -> float | None:
    if node.op != "call_function":
        return None
    value = node.meta.get("val")
    if isinstance(value, (int, float, bool)):
        return value
    if isinstance(value, torch.SymInt):
        return value.node.maybe_as_int()
    return None


class _Folding:
    """One run of the pass: the values of the nodes that are constant, computed in order."""

    def __init__(self, graph_module: GraphModule, limit_bytes: int) -> None:
        self.graph_module = graph_module
        self.room_bytes = limit_bytes
        self.values: dict[Node, Any] = {}
        self.held: dict[tuple[Any, ...], Node] = {}

    def run(self) -> int:
        for node in self.graph_module.graph.nodes:
            constant = constant_of(node)
            if constant is not None:
                self.values[node] = constant
            elif self._is_computable(node):
                self._compute(node)
        frontier = self._frontier()
        for node in frontier:
            self._replace(node)
        return len(frontier)

    def _is_computable(self, node: Node) -> bool:
        if not is_pure(node) or _is_symbolic(node.meta.get("val")):
            return False
        return all(n in self.values for n in node.all_input_nodes)

    def _compute(self, node: Node) -> None:
        """Compute ``node``, unless its result is too large. An expansion costs nothing until it is written out, so it always is computed."""
        sources_bytes = sum(_storage_bytes(self.values[n]) for n in node.all_input_nodes)
        growth_bytes = _result_bytes(node) - sources_bytes
        if node.target is not aten.expand.default and not _is_view(node) and growth_bytes > self.room_bytes:
            return
        args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda n: self.values[n])
        assert callable(node.target)
        with torch.no_grad():
            self.values[node] = node.target(*args, **kwargs)

    def _frontier(self) -> list[Node]:
        """The computed tensors that something not computed reads, less those that are better computed at run time."""
        frontier: list[Node] = []
        kept_alive = {
            _storage_of(value) for node, value in self.values.items() if node.op == "get_attr" and any(user not in self.values for user in node.users)
        }
        for node in reversed(list(self.values)):
            value = self.values[node]
            if all(user in self.values for user in node.users):
                continue
            if node.op == "get_attr":
                continue
            if isinstance(value, torch.Tensor) and not self._is_better_computed(node, value, kept_alive):
                frontier.append(node)
            else:
                del self.values[node]  # an operator again; what it reads may be a constant of its own
        return frontier[::-1]

    def _is_better_computed(self, node: Node, value: torch.Tensor, kept_alive: set[int]) -> bool:
        if users_of_output(node):
            return True  # the caller must not get the engine's own tensor
        if node.target in _EXPANSIONS and value.numel() > max(SMALL_NUMEL, *(self.values[n].numel() for n in node.all_input_nodes), 0):
            return True
        if _is_view(node) and _storage_of(value) in kept_alive:
            return True  # a view of a tensor that is read anyway: folded, it would be stored twice
        growth_bytes = value.numel() * value.element_size() - sum(_storage_bytes(self.values[s]) for s in self._sources(node))
        if growth_bytes > self.room_bytes:
            return True
        self.room_bytes -= max(0, growth_bytes)
        return False

    def _sources(self, node: Node) -> set[Node]:
        """The stored tensors that ``node`` was computed from."""
        seen: set[Node] = set()
        waiting = [node]
        while waiting:
            for n in waiting.pop().all_input_nodes:
                if n not in seen:
                    seen.add(n)
                    waiting.append(n)
        return {n for n in seen if n.op == "get_attr"}

    def _replace(self, node: Node) -> None:
        value = self.values[node]
        key = (_storage_of(value), value.storage_offset(), tuple(value.shape), value.stride(), value.dtype)
        held = self.held.get(key)
        if held is None:
            if value.numel() * value.element_size() < value.untyped_storage().nbytes():
                value = value.clone()  # a part of a larger tensor, which this lets go
            held = self.held[key] = insert_constant(self.graph_module, f"folded_{node.name}", value, before=node)
        replace(node, held)


def _is_symbolic(value: Any) -> bool:
    """Whether a symbol stands in ``value``: of a constant, that is a size that depends on data, which later nodes may speak of."""
    leaves = [size for v in tree_leaves(value) for size in (v.shape if isinstance(v, torch.Tensor) else [v])]
    return any(isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)) for leaf in leaves)


def _is_view(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target.is_view


def _result_bytes(node: Node) -> int:
    return sum(v.numel() * v.element_size() for v in tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor))


def _storage_of(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _storage_bytes(value: Any) -> int:
    return value.untyped_storage().nbytes() if isinstance(value, torch.Tensor) else 0
