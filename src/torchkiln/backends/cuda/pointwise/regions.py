"""regions: groups of pointwise nodes that one kernel computes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch.fx import Graph, Node

from .expressions import Program, filled_value, pointwise_reject, spec_of, write
from .rules import TYPES

_MAX_INPUTS, _MAX_OUTPUTS, _MAX_NODES = 12, 4, 48
#: Up to this many elements a launch saved is worth more than a costly function of a broadcast operand computed again for every element.
_RECOMPUTE_ELEMENTS = 1 << 22
_SHORT_NAMES = {"_to_copy": "cast", "clone": "copy", "_prelu_kernel": "prelu"}
_SHORT_NAMES |= {f"torchkiln.{name}.default": name for name in ("quantize", "dequantize")}
_CHEAP = {"add", "sub", "rsub", "mul", "neg", "abs", "relu", "clamp", "hardtanh", "where", "maximum", "minimum", "_to_copy", "clone"}
_CHEAP |= {"eq", "ne", "lt", "le", "gt", "ge", "masked_fill", "logical_and", "logical_or", "logical_not", "hardsigmoid", "hardswish"}
_CHEAP |= {"torchkiln.dequantize.default"}


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes computed by one kernel.

    Attributes:
        nodes: in topological order.
        inputs: nodes read from outside, in the order of the kernel's pointers. A node may be there twice: as it is, and as a weight per channel.
            Nodes such as ``full(...)`` are not: their number is written into the kernel.
        outputs: nodes of the region that are read outside.
        shape: what the kernel iterates over; every output has it, nodes inside may have one that broadcasts to it.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    shape: tuple[int, ...]

    @cached_property
    def program(self) -> Program:
        return write(self.nodes)


def make_region(nodes: tuple[Node, ...]) -> Region:
    """The region of these nodes (in topological order)."""
    inside = set(nodes)
    outputs = tuple(n for n in nodes if any(user not in inside for user in n.users))
    shape = max((tuple(spec_of(n).shape) for n in nodes), key=lambda s: (_numel(s), len(s)))
    region = Region(nodes, (), outputs or nodes[-1:], shape)
    return Region(nodes, tuple(node for node, _ in region.program.inputs), region.outputs, shape)


def region_key(region: Region) -> str:
    """The same text for regions that compute the same, whatever their nodes are called and whatever their shapes are."""
    program = region.program
    position = {node: index for index, node in enumerate(region.nodes)}
    types = [f"{TYPES[spec_of(node).dtype]}/{trailing}" for node, trailing in program.inputs]
    stores = [f"v{position[node]}:{TYPES[spec_of(node).dtype]}" for node in region.outputs]
    return hashlib.sha256("\n".join([*types, *program.lines, *stores]).encode()).hexdigest()[:24]


def describe(region: Region) -> str:
    """Such as "mul+add+relu"."""
    return "+".join(_SHORT_NAMES.get(_name(node), _name(node)) for node in region.nodes)


def find_regions(graph: Graph, taken: Callable[[Node], bool]) -> list[Region]:
    """Every pointwise node that is not taken, in greedily grown regions, such that no path leaves a region and comes back, also not through
    other regions: ``reorder`` can make each one contiguous. In the order of their first nodes.

    Nodes such as ``full(...)`` are a region of their own where somebody else reads them.
    """
    groups = _Groups(graph)
    free = [n for n in graph.nodes if n.op == "call_function" and n.users and not taken(n) and not pointwise_reject(n)]
    members = {n for n in free if filled_value(n) is None}
    merged = True
    while merged:  # again: a broadcast operand may join only once all of its readers are in one region
        merged = False
        for node in free:
            for producer in dict.fromkeys(node.all_input_nodes):
                if node in members and producer in members and groups.may_merge(producer, node):
                    groups.merge(producer, node)
                    merged = True
    position = groups.position
    parts = {id(group := groups.of[node]): tuple(sorted(group, key=position.__getitem__)) for node in free if node in members}
    constants = [(n,) for n in free if n not in members and any(user not in members for user in n.users)]
    return [make_region(nodes) for nodes in sorted([*parts.values(), *constants], key=lambda nodes: position[nodes[0]])]


def reorder(graph: Graph, regions: list[Region]) -> None:
    """Move the graph's nodes so that those of a region follow each other; otherwise the order stays as near as it can to the present one."""
    unit: dict[Node, tuple[Node, ...]] = {n: (n,) for n in graph.nodes}
    for region in regions:
        unit.update(dict.fromkeys(region.nodes, region.nodes))
    done: set[Node] = set()
    order: list[Node] = []
    for root in list(graph.nodes):
        stack = [] if root in done else [unit[root]]
        while stack:
            waiting = [unit[p] for n in stack[-1] for p in n.all_input_nodes if p not in done and p not in stack[-1]]
            if waiting:
                stack.append(waiting[0])
            else:
                nodes = stack.pop()
                if nodes[0] not in done:
                    order.extend(nodes)
                    done.update(nodes)
    for before, after in pairwise(order):
        before.append(after)
    graph.lint()


class _Groups:
    """The graph with groups of nodes contracted, kept free of cycles. Sets of nodes are integers, one bit for each node."""

    def __init__(self, graph: Graph) -> None:
        self.position = {node: index for index, node in enumerate(graph.nodes)}
        self.of: dict[Node, list[Node]] = {node: [node] for node in graph.nodes}
        self._bits = {node: 1 << index for node, index in self.position.items()}
        self._before: dict[Node, int] = {}  # all nodes that must come before: through edges and through groups
        for node in graph.nodes:
            self._before[node] = 0
            for p in node.all_input_nodes:
                self._before[node] |= self._before[p] | self._bits[p]

    def may_merge(self, producer: Node, consumer: Node) -> bool:
        first, second = self.of[producer], self.of[consumer]
        if first is second or len(first) + len(second) > _MAX_NODES:
            return False
        inside = set(first) | set(second)
        small, large = _shape(first), _shape(second)
        if small != large and not self._may_recompute(first, large, inside):
            return False
        outputs = [n for n in inside if any(user not in inside for user in n.users)]
        if any(tuple(spec_of(n).shape) != large for n in outputs) or len(outputs) > _MAX_OUTPUTS:
            return False
        if len({p for n in inside for p in n.all_input_nodes if p not in inside and filled_value(p) is None}) > _MAX_INPUTS:
            return False
        bits = self._set(first)  # a path first -> outside -> second would be a cycle; one back from second cannot be, as first -> second is an edge
        return not any(self._before[p] & bits for n in second for p in n.all_input_nodes if p not in inside)

    @staticmethod
    def _may_recompute(group: list[Node], shape: tuple[int, ...], inside: set[Node]) -> bool:
        """Whether a group of a smaller shape may be computed again for every element of the larger one."""
        if any(user not in inside for n in group for user in n.users) or not broadcasts(_shape(group), shape):
            return False
        return _numel(shape) <= _RECOMPUTE_ELEMENTS or all(_name(n) in _CHEAP for n in group)

    def merge(self, first: Node, second: Node) -> None:
        group = self.of[first] + self.of[second]
        bits = self._set(group)
        before = 0
        for node in group:
            before |= self._before[node]
        before &= ~bits
        for node in group:
            self.of[node], self._before[node] = group, before
        for node, earlier in self._before.items():
            if earlier & bits:
                self._before[node] = earlier | bits | before

    def _set(self, nodes: list[Node]) -> int:
        bits = 0
        for node in nodes:
            bits |= self._bits[node]
        return bits


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts to another one."""
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


def _shape(group: list[Node]) -> tuple[int, ...]:
    return max((tuple(spec_of(n).shape) for n in group), key=lambda s: (_numel(s), len(s)))


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _name(node: Node) -> str:
    return str(node.target).split(".")[1] if str(node.target).startswith("aten.") else str(node.target)
