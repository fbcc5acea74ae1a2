"""narrow_segment: take out of a segment what needs no computing, and remember how to put it back.

Graph converters differ on inputs that nothing reads and on outputs that are an input, a constant or another output again: some drop them,
some refuse. Without these every segment has only inputs that are used and outputs that are computed, each once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from ..backends.call_plan import CallPlan
from .segment import Segment

_SAME_VALUE = {
    torch.ops.aten.alias.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.lift_fresh_copy.default,
}


@dataclass
class Narrowed:
    """The segment that is left, the plan to call it, and the constants that are outputs. ``segment`` is None when nothing is left to compute."""

    segment: Segment | None
    plan: CallPlan
    constants: dict[str, torch.Tensor]


def narrow_segment(segment: Segment) -> Narrowed:
    """Split ``segment`` into what must be computed and what is only passed on. ``segment`` itself is not changed."""
    old_graph = segment.graph_module.graph
    placeholders = [n for n in old_graph.nodes if n.op == "placeholder"]
    output = old_graph.output_node()
    computed: list[Node] = []
    sources: list[tuple[str, int]] = []
    constants: dict[str, torch.Tensor] = {}
    names: dict[str, int] = {}
    for value in output.args[0]:  # type: ignore[union-attr]
        assert isinstance(value, Node)
        origin = _origin(value)
        if origin.op == "placeholder":
            sources.append(("input", placeholders.index(origin)))
        elif origin.op == "get_attr":
            index = names.setdefault(str(origin.target), len(names))
            constants[f"constant_{index}"] = _tensor(segment.graph_module, origin)
            sources.append(("constant", index))
        else:
            if origin not in computed:
                computed.append(origin)
            sources.append(("result", computed.index(origin)))

    graph = Graph()
    mapped: dict[Node, Node] = {}
    needed = _needed(computed)
    used = [index for index, node in enumerate(placeholders) if node in needed]
    for node in old_graph.nodes:
        if node in needed:
            mapped[node] = graph.node_copy(node, lambda n: mapped[n])
    graph.output(tuple(mapped[n] for n in computed))
    plan = CallPlan(len(placeholders), tuple(used), tuple(sources))
    if not computed:
        return Narrowed(None, plan, constants)
    narrow = Segment(
        name=segment.name,
        graph_module=GraphModule(segment.graph_module, graph, class_name="Segment"),
        dim_ranges=tuple(segment.dim_ranges[i] for i in used),
        example_inputs=tuple(segment.example_inputs[i] for i in used),
        op_count=segment.op_count,
        profiles=tuple(tuple(profile[i] for i in used) for profile in segment.profiles),
    )
    return Narrowed(narrow, plan, constants)


def _origin(node: Node) -> Node:
    """The node whose value ``node`` repeats: outputs are fresh in any case, so a copy of a value is the value."""
    while node.op == "call_function" and node.target in _SAME_VALUE and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _needed(outputs: list[Node]) -> set[Node]:
    found: set[Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def _tensor(graph_module: GraphModule, node: Node) -> torch.Tensor:
    value: object = graph_module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    assert isinstance(value, torch.Tensor), node
    return value.detach().clone(memory_format=torch.contiguous_format)  # the model's owner may change the model's own
