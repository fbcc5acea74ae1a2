"""copy_graph_module: a graph that passes may rewrite, over the same tensors."""

from __future__ import annotations

from torch.fx import Graph, GraphModule, Node


def copy_graph_module(graph_module: GraphModule) -> GraphModule:
    """A graph of its own over the same tensors: passes may rewrite it."""
    graph = Graph()
    values: dict[Node, Node] = {}
    output = graph.graph_copy(graph_module.graph, values)
    graph.output(output)
    return GraphModule(graph_module, graph, class_name="Segment")
