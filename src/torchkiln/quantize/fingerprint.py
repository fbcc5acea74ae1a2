"""fingerprint: which model a calibration belongs to."""

from __future__ import annotations

import hashlib

import torch
from torch.fx import GraphModule, Node

from ..engine.safetensors_member import tensor_bytes
from ..lower.graph_edit import constant_of
from .layers import find_layers
from .options import QuantizeOptions


def fingerprint(graph_module: GraphModule) -> str:
    """sha256 of the lowered graph: the operators that compute activations, in order, and the layers' names and weights.

    The same for all batch sizes and ranges that a model is captured with, and on every device; another for other weights or another model.
    """
    digest = hashlib.sha256()
    for node in _activations(graph_module):
        digest.update(f"{node.target};".encode())
    for layer in find_layers(graph_module, QuantizeOptions()):
        digest.update(f"{layer.name}:{layer.node.target};".encode())
        weight = constant_of(layer.weight)
        if weight is not None:
            digest.update(f"{weight.dtype}{tuple(weight.shape)}".encode())
            digest.update(tensor_bytes(weight.detach().cpu()).numpy().data)
    return digest.hexdigest()


def _activations(graph_module: GraphModule) -> list[Node]:
    """The operators on floating values that depend on the model's inputs, without views and copies, which follow the sizes captured with."""
    depends: set[Node] = set()
    found = []
    for node in graph_module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            depends.add(node)
        elif node.op == "call_function" and not depends.isdisjoint(node.all_input_nodes) and not isinstance(value, (torch.SymInt, int)):
            depends.add(node)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not _moves_only(node):
                found.append(node)
    return found


def _moves_only(node: Node) -> bool:
    target = node.target
    return not isinstance(target, torch._ops.OpOverload) or target.is_view or target._schema.name.split("::")[1] in _COPIES


_COPIES = {"clone", "reshape", "contiguous", "_to_copy", "repeat", "expand", "full_like", "new_zeros", "new_full"}
