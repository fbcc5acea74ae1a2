"""support: which backend takes which node of the lowered graph, and why not."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from ..backends.contract import Backend, Reject
from ..backends.node_values import is_effect, is_unbacked, values_of
from ..settings import CompileSettings, op_name


def is_scalar(node: Node) -> bool:
    """Whether the node computes a size or another Python number, not a tensor."""
    return isinstance(node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool))


def is_getitem(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def is_compute(node: Node) -> bool:
    """Whether a node is an operator that some segment must run: not an input, constant, size, or pick from a tuple."""
    return node.op == "call_function" and not is_scalar(node) and not is_getitem(node)


def find_rejects(graph_module: GraphModule, backend: Backend, settings: CompileSettings) -> dict[Node, Reject]:
    """The compute nodes that must stay in PyTorch if ``backend`` takes the rest."""
    rejects: dict[Node, Reject] = {}
    for node in graph_module.graph.nodes:
        if not is_compute(node):
            continue
        reject = _asked_for_torch(node, settings) or _data_dependent(node) or backend.supports(node)
        if reject is not None:
            rejects[node] = reject
    return rejects


def _asked_for_torch(node: Node, settings: CompileSettings) -> Reject | None:
    name = op_name(node.target)
    if name in settings.torch_executed_ops or name.rpartition(".")[0] in settings.torch_executed_ops:
        return Reject(name, "torch_executed_ops asks for PyTorch")
    return None


def _data_dependent(node: Node) -> Reject | None:
    name = op_name(node.target)
    # Not by the operator's tag: aten.index is tagged for its boolean masks, and does no harm with integers.
    if any(is_unbacked(source.meta.get("val")) for source in node.all_input_nodes):
        return Reject(name, "works on a tensor whose shape depends on the data")
    if any(map(is_unbacked, values_of(node))):
        return Reject(name, "its output's shape depends on the data")
    if is_effect(node):
        return Reject(name, "is a run-time check or a side effect")
    return None


def location(node: Node) -> str:
    """``relu_3 (model.py:41)``: the node, and the innermost line of the user's code that made it."""
    trace = node.meta.get("stack_trace") or ""
    files = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    if not files:
        return node.name
    own = [line for line in files if "/torch/nn/" not in line.replace("\\", "/")]
    parts = (own or files)[-1].split(", ")
    path = parts[0].removeprefix("File ").strip('"').rpartition("/")[2]
    line = parts[1].removeprefix("line ") if len(parts) > 1 else "?"
    return f"{node.name} ({path}:{line})"
