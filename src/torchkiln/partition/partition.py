"""partition: split the lowered graph into segments, each run whole by one backend or by PyTorch.

Every compute node gets a label (the backend, or PyTorch) and a stage: the number of times the label changes on the longest path
from the inputs to it. Nodes of one stage carry one label and never feed each other through another stage, so each stage is a
segment and running the stages in order is correct. It is also the least number of alternations the labels allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from ..backends.contract import Backend, Reject
from ..settings import CompileSettings, op_name
from .support import find_rejects, is_compute, is_getitem, is_scalar

TORCH = "torch"


@dataclass
class Part:
    """The nodes of one segment, in graph order, and the name of the backend that runs them."""

    backend: str
    nodes: list[Node]

    @property
    def op_count(self) -> int:
        return sum(is_compute(n) for n in self.nodes)


@dataclass
class Partition:
    """Parts in running order, and every node left to PyTorch with the reason."""

    parts: list[Part]
    rejects: dict[Node, Reject] = field(default_factory=dict)

    @property
    def backend_parts(self) -> list[Part]:
        return [p for p in self.parts if p.backend != TORCH]


def partition(graph_module: GraphModule, backend: Backend, settings: CompileSettings, demoted: dict[Node, Reject] | None = None) -> Partition:
    """Split the graph between ``backend`` and PyTorch.

    ``demoted`` are nodes to leave to PyTorch for a reason found later (measured slower). Segments smaller than ``settings.min_block_size``
    go to PyTorch too, unless the segment is the whole model.
    """
    if backend.name == TORCH:
        return Partition(_stages(graph_module, dict.fromkeys(_compute_nodes(graph_module), TORCH)))
    rejects = {**find_rejects(graph_module, backend, settings), **(demoted or {})}
    while True:
        labels = {n: TORCH if n in rejects else backend.name for n in _compute_nodes(graph_module)}
        parts = _stages(graph_module, labels)
        small = [p for p in parts if p.backend != TORCH and p.op_count < settings.min_block_size]
        if not small or len(parts) == 1:
            return Partition(parts, rejects)
        for part in small:
            reason = f"its segment has {part.op_count} operators, fewer than min_block_size={settings.min_block_size}"
            rejects.update({n: Reject(op_name(n.target), reason) for n in part.nodes if is_compute(n)})


def _compute_nodes(graph_module: GraphModule) -> list[Node]:
    return [n for n in graph_module.graph.nodes if is_compute(n)]


def tensor_sources(nodes: Iterable[Node]) -> set[Node]:
    """The tensor nodes these nodes rest on: tensors themselves, and those that sizes are taken of."""
    found: set[Node] = set()
    stack, seen = list(nodes), set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_scalar(node) and node.op == "call_function":
            stack.extend(node.all_input_nodes)
        else:
            found.add(node)
    return found


def _stages(graph_module: GraphModule, labels: dict[Node, str]) -> list[Part]:
    """Group the labelled nodes (and the getitems that follow them) by stage. A scalar output of the model is computed by a PyTorch stage."""
    labels = dict(labels)
    output = graph_module.graph.output_node()
    for node in output.all_input_nodes:
        if is_scalar(node) and node.op == "call_function":
            labels[node] = TORCH
    stage: dict[Node, int] = {}
    groups: dict[int, list[Node]] = {}
    for node in graph_module.graph.nodes:
        if node not in labels and not is_getitem(node):
            continue
        if is_getitem(node) and not is_scalar(node):
            stage[node] = stage[node.args[0]]
            groups[stage[node]].append(node)
            continue
        if node not in labels:
            continue
        own = labels[node]
        level = 0 if own == TORCH else 1
        for source in tensor_sources(node.all_input_nodes):
            if source in stage:
                level = max(level, stage[source] + ((stage[source] % 2 == 0) != (own == TORCH)))
        stage[node] = level
        groups.setdefault(level, []).append(node)
    names: dict[int, str] = {stage[n]: labels[n] for n in labels}
    return [Part(names[level], groups[level]) for level in sorted(groups)]


def values_needed_later(parts: Sequence[Part], output: Node) -> list[list[Node]]:
    """For each part, which of its nodes later parts or the model's output read."""
    needed: list[list[Node]] = []
    for index, part in enumerate(parts):
        own = set(part.nodes)
        readers = [n for later in parts[index + 1 :] for n in later.nodes]
        wanted = tensor_sources([i for r in readers for i in r.all_input_nodes]) & own
        wanted |= set(output.all_input_nodes) & own
        needed.append([n for n in part.nodes if n in wanted])
    return needed
