"""extract: the parts of a partition as Segments that stand alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from ..inputs import Input, Profile, ShapeRange
from .partition import Part, Partition, tensor_sources, values_needed_later
from .segment import Segment
from .support import is_scalar


@dataclass
class Step:
    """A segment and its place in the engine: the nodes of the whole graph it reads and gives."""

    backend: str
    segment: Segment
    inputs: list[Node]
    outputs: list[Node]
    nodes: list[Node]


def extract(
    graph_module: GraphModule,
    partition: Partition,
    inputs: Sequence[Input],
    example_inputs: Sequence[torch.Tensor],
    profiles: Sequence[Profile] = (),
) -> list[Step]:
    """Each part as a Step with a Segment of its own, in running order.

    Example inputs of inner segments are found by running the graph in PyTorch on ``example_inputs``; their profiles follow from the program's
    ``profiles`` (each with the range of every input of the program).
    """
    ranges = symbol_ranges(graph_module, inputs)
    symbols = [profile_symbols(graph_module, profile) for profile in profiles]
    needed = values_needed_later(partition.parts, graph_module.graph.output_node())
    graphs = [_segment_graph(graph_module, part, outputs) for part, outputs in zip(partition.parts, needed, strict=True)]
    wanted = {n for _, sources in graphs for n in sources}
    values = _example_values(graph_module, example_inputs, wanted)
    steps = []
    for index, (part, outputs, (module, sources)) in enumerate(zip(partition.parts, needed, graphs, strict=True)):
        segment = Segment(
            name=f"segment_{index}",
            graph_module=module,
            dim_ranges=tuple(_dim_ranges(n.meta["val"], ranges) for n in sources),
            example_inputs=tuple(values[n] for n in sources),
            op_count=part.op_count,
            profiles=tuple(tuple(_shape_range(n.meta["val"], bounds) for n in sources) for bounds in symbols),
        )
        steps.append(Step(part.backend, segment, sources, outputs, part.nodes))
    return steps


def _segment_graph(graph_module: GraphModule, part: Part, outputs: list[Node]) -> tuple[GraphModule, list[Node]]:
    """The part as a graph of its own. Constants and sizes are taken along; tensors from outside become its inputs."""
    own = set(part.nodes)
    external = tensor_sources([i for n in part.nodes for i in n.all_input_nodes]) | tensor_sources(n for n in part.nodes if is_scalar(n))
    sources = [n for n in graph_module.graph.nodes if n in external and n not in own and n.op != "get_attr"]
    graph = Graph()
    mapped: dict[Node, Node] = {}
    for source in sources:
        mapped[source] = graph.placeholder(source.name)
        mapped[source].meta = dict(source.meta)

    def take(node: Node) -> Node:
        if node not in mapped:
            for dependency in node.all_input_nodes:
                take(dependency)
            mapped[node] = graph.node_copy(node, lambda n: mapped[n])
        return mapped[node]

    for node in part.nodes:
        take(node)
    graph.output(tuple(mapped[n] for n in outputs))
    module = GraphModule(_tensors_of(graph_module, graph), graph, class_name="Segment")
    return module, sources


def _tensors_of(graph_module: GraphModule, graph: Graph) -> torch.nn.Module:
    """A module with just the tensors (and nested graphs) the graph reads, under the same names."""
    root = torch.nn.Module()
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        value = graph_module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        owner = root
        *parents, leaf = str(node.target).split(".")
        for name in parents:
            if not hasattr(owner, name):
                owner.add_module(name, torch.nn.Module())
            owner = getattr(owner, name)
        if isinstance(value, torch.Tensor):
            owner.register_buffer(leaf, value.detach())
        else:
            setattr(owner, leaf, value)
    return root


def _example_values(graph_module: GraphModule, example_inputs: Sequence[torch.Tensor], wanted: set[Node]) -> dict[Node, torch.Tensor]:
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    values = dict(zip(placeholders, example_inputs, strict=True))
    if wanted <= values.keys():
        return values
    return {**values, **run_nodes(graph_module, example_inputs, wanted)}


def run_nodes(graph_module: GraphModule, inputs: Sequence[torch.Tensor], wanted: set[Node]) -> dict[Node, torch.Tensor]:
    """Run the graph in PyTorch and keep the values of the wanted nodes."""
    found: dict[Node, torch.Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Node) -> object:
            value = super().run_node(n)
            if n in wanted:
                found[n] = value
            return value

    with torch.inference_mode():
        Recorder(graph_module).run(*inputs)
    # Tensors made in inference mode cannot be exported with.
    return {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in found.items()}


def symbol_ranges(graph_module: GraphModule, inputs: Sequence[Input]) -> dict[object, object]:
    """The range of each symbol in the graph's shapes, from the Inputs' ranges."""
    from torch.utils._sympy.value_ranges import ValueRanges

    ranges: dict[object, object] = {}
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    for node, spec in zip(placeholders, inputs, strict=True):
        for d, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                ranges[size.node.expr] = ValueRanges(spec.min_shape[d], spec.max_shape[d])
    return ranges


def _dim_ranges(value: torch.Tensor, ranges: dict[object, object]) -> dict[int, tuple[int, int]]:
    from torch.utils._sympy.value_ranges import bound_sympy

    found: dict[int, tuple[int, int]] = {}
    for d, size in enumerate(value.shape):
        if isinstance(size, torch.SymInt):
            expr = size.node.expr
            if not all(s in ranges for s in expr.free_symbols):
                continue
            bounds = bound_sympy(expr, ranges)
            if bounds.lower != bounds.upper:
                found[d] = (int(bounds.lower), int(bounds.upper))
    return found


#: A symbol's least, usual and largest value in one profile.
Bounds = dict[object, tuple[int, int, int]]


def profile_symbols(graph_module: GraphModule, profile: Profile) -> Bounds:
    """What each symbol of the graph's shapes is in a profile.

    Two dimensions that must agree have one symbol: its range is what all of them allow.
    """
    bounds: Bounds = {}
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    for node, shapes in zip(placeholders, profile, strict=True):
        for d, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                low, opt, high = shapes.min[d], shapes.opt[d], shapes.max[d]
                if size.node.expr in bounds:
                    other = bounds[size.node.expr]
                    low, high = max(low, other[0]), min(high, other[2])
                    opt = min(max(other[1], low), high)
                bounds[size.node.expr] = (low, opt, high)
    return bounds


def _shape_range(value: torch.Tensor, bounds: Bounds) -> ShapeRange:
    sizes = [_size_bounds(size, bounds) for size in value.shape]
    low, opt, high = (tuple(size[position] for size in sizes) for position in range(3))
    return ShapeRange(low, opt, high)


def _size_bounds(size: int | torch.SymInt, bounds: Bounds) -> tuple[int, int, int]:
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

    if not isinstance(size, torch.SymInt):
        return size, size, size
    expr = size.node.expr
    found = bound_sympy(expr, {symbol: ValueRanges(low, high) for symbol, (low, _, high) in bounds.items()})
    opt = int(expr.subs({symbol: opt for symbol, (_, opt, _) in bounds.items()}))
    return int(found.lower), opt, int(found.upper)
