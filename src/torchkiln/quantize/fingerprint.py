"""fingerprint: which model a calibration belongs to."""

from __future__ import annotations

import hashlib

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from ..engine.safetensors_member import tensor_bytes
from ..lower.graph_edit import constant_of
from .layers import find_layers
from .options import QuantizeOptions


def fingerprint(graph_module: GraphModule) -> str:
    """sha256 of the lowered graph: the operators that compute activations, in order, with the numbers and floating constants that they read, and
    the layers' names and weights.

    The same for all batch sizes that a model is captured with, and on every device; another for other weights or another model.
    """
    digest = hashlib.sha256()
    layers = find_layers(graph_module, QuantizeOptions())
    weights = {layer.weight for layer in layers}
    depends = _dependents(graph_module)
    for node in graph_module.graph.nodes:
        if node in depends and _gives_floats(node) and not _moves_only(node):
            numbers = [leaf for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, float)]
            digest.update(f"{node.target}{numbers};".encode())
            for constant in _constants(node, depends):
                if constant not in weights:
                    _add_tensor(digest, _without_repeats(constant_of(constant)))
    for layer in layers:
        digest.update(f"{layer.name}:{layer.node.target};".encode())
        _add_tensor(digest, constant_of(layer.weight))
    return digest.hexdigest()


def _dependents(graph_module: GraphModule) -> set[Node]:
    """The inputs and what depends on them, without sizes."""
    depends: set[Node] = set()
    for node in graph_module.graph.nodes:
        is_size = isinstance(node.meta.get("val"), (torch.SymInt, int))
        is_reached = node.op == "call_function" and not depends.isdisjoint(node.all_input_nodes)
        if node.op == "placeholder" or (is_reached and not is_size):
            depends.add(node)
    return depends


def _constants(node: Node, depends: set[Node]) -> list[Node]:
    """The constants that ``node`` reads, itself or through operators that no input reaches."""
    found: dict[Node, None] = {}
    waiting = [n for n in reversed(node.all_input_nodes) if n not in depends]
    while waiting:
        source = waiting.pop()
        if constant_of(source) is not None:
            found[source] = None
        waiting += [n for n in reversed(source.all_input_nodes) if n not in depends]
    return list(found)


def _add_tensor(digest: hashlib._Hash, tensor: torch.Tensor | None) -> None:
    if tensor is not None and tensor.is_floating_point():
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor).numpy().data)


def _without_repeats(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor without the dimensions along which all is equal: a constant may have been expanded to the batch size."""
    if tensor is None or not tensor.numel():
        return tensor
    for dim, size in enumerate(tensor.shape):
        first = tensor.narrow(dim, 0, 1)
        if size > 1 and bool((tensor == first).all()):
            tensor = first
    return tensor.squeeze()


def _gives_floats(node: Node) -> bool:
    return any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in tree_leaves(node.meta.get("val")))


def _moves_only(node: Node) -> bool:
    """Whether this is a view or a copy, which follow the sizes captured with."""
    target = node.target
    return not isinstance(target, torch._ops.OpOverload) or target.is_view or target._schema.name.split("::")[1] in _COPIES


_COPIES = {"clone", "reshape", "contiguous", "_to_copy", "repeat", "expand", "full_like", "new_zeros", "new_full"}
