"""units: the parts of a program that get a precision each: a convolution, matrix product or attention, and what follows it up to the next."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from ..lower.keep_float32 import computes_float32, is_kept_float32
from ..lower.precision_rules import Rule, rule_of
from ..partition.support import is_compute
from ..quantize.layers import Layer, Names

#: Neighbours are joined until there are no more: the scan runs the model for each unit and precision.
MOST_UNITS = 64


@dataclass(frozen=True)
class Unit:
    """A part of the program.

    Attributes:
        name: the module of its first layer; of several units that were joined, that of the first and the last.
        nodes: names of its nodes.
        int8: names of those of its layers that may become int8.
    """

    name: str
    nodes: tuple[str, ...]
    int8: tuple[str, ...] = ()


def find_units(graph_module: GraphModule, layers: list[Layer], most: int = MOST_UNITS) -> list[Unit]:
    """The units in the graph's order: every operator on float32 tensors is in one, but for those that are kept in float32 anyway.

    ``layers``: those that may become int8.
    """
    names = Names()
    int8 = {layer.node.name: layer.name for layer in layers}
    found: list[tuple[str, list[Node]]] = []
    unit_of: dict[Node, int] = {}
    for node in graph_module.graph.nodes:
        if not is_compute(node) or not computes_float32(node):
            continue
        is_anchor = rule_of(node) is Rule.LOW
        name = names.of(node) if is_anchor else ""
        if is_kept_float32(node):
            continue
        own = max((unit_of[source] for source in _sources(node) if source in unit_of), default=-1)
        if is_anchor or own < 0:
            own = len(found)
            found.append((name or node.name, []))
        found[own][1].append(node)
        unit_of[node] = own
    units = [Unit(name, tuple(n.name for n in nodes), tuple(int8[n.name] for n in nodes if n.name in int8)) for name, nodes in found]
    return _join(units, most)


def _sources(node: Node) -> list[Node]:
    """What a node reads; of an item of several results, what made them."""
    return [source if is_compute(source) else next(iter(source.all_input_nodes), source) for source in node.all_input_nodes]


def _join(units: list[Unit], most: int) -> list[Unit]:
    size = -(-len(units) // most) if units else 1
    groups = [units[i : i + size] for i in range(0, len(units), size)]
    return [
        Unit(
            group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name}",
            tuple(name for unit in group for name in unit.nodes),
            tuple(name for unit in group for name in unit.int8),
        )
        for group in groups
    ]
