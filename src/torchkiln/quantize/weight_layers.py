"""weight_layers: the matrices of a lowered graph that weight-only quantization keeps in 8 or 4 bits, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from ..lower.graph_edit import constant_of
from ..lower.keep_float32 import is_kept_float32
from .layers import Names, gives_model_output

aten = torch.ops.aten

#: Operator -> (position of the weight, whether the weight is (in, out), as a product has it, or (out, in), as a linear layer does).
_MATRICES = {
    aten.linear.default: (1, False),
    aten.mm.default: (1, True),
    aten.matmul.default: (1, True),
    aten.addmm.default: (2, True),
    aten.embedding.default: (0, False),
}
_NO_MATRICES = {aten.convolution.default: "a convolution: its weights are few for its work"}
#: A weight of fewer elements (128 KiB in float32) gains nothing: it stays in the CPU's cache.
SMALLEST_NUMEL = 1 << 15


@dataclass(frozen=True)
class WeightLayer:
    """A layer with a constant weight.

    Attributes:
        name: the module it comes from ("encoder.0.linear1"), unique in the graph.
        node: its node.
        weight: the node of its weight, a matrix.
        is_transposed: whether the weight is (in, out).
        bits: 8 or 4; 0 when the weight stays floating.
        reason: why it has fewer bits less than asked for: why it stays floating, or is in 8 bits where 4 were asked for.
    """

    name: str
    node: Node
    weight: Node
    is_transposed: bool
    bits: int
    reason: str = ""

    @property
    def is_embedding(self) -> bool:
        return self.node.target is aten.embedding.default


def find_weight_layers(graph_module: GraphModule, bits: int, group_size: int) -> list[WeightLayer]:
    """Every layer with a weight, in the graph's order. ``bits``, ``group_size``: what is asked for."""
    layers = [_judge(layer, bits, group_size) for layer in _layers(graph_module)]
    kept = {layer.node for layer in layers if layer.bits}
    found = []
    for layer in layers:
        sharing = [other for other in layers if other.weight is layer.weight]
        if layer.bits and not all(user in kept for user in layer.weight.users):
            layer = replace(layer, bits=0, reason="its weight is read in floating point too")
        elif layer.bits and len({other.is_transposed for other in sharing}) > 1:
            layer = replace(layer, bits=0, reason="its weight is read transposed too")
        elif layer.bits == 4 and any(other.bits == 8 for other in sharing):
            layer = replace(layer, bits=8, reason="its weight is shared with a layer of 8 bits")
        found.append(layer)
    return found


def _layers(graph_module: GraphModule) -> Iterator[WeightLayer]:
    names = Names()
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _NO_MATRICES and isinstance(node.args[1], Node):
            yield WeightLayer(names.of(node), node, node.args[1], False, 0, _NO_MATRICES[node.target])
        elif node.target in _MATRICES:
            position, is_transposed = _MATRICES[node.target]
            weight = node.args[position]
            if isinstance(weight, Node):
                yield WeightLayer(names.of(node), node, weight, is_transposed, 8)


def _judge(layer: WeightLayer, bits: int, group_size: int) -> WeightLayer:
    """The layer with the bits that it gets for itself."""
    if not layer.bits:
        return layer
    reason = _refusal(layer)
    if reason:
        return replace(layer, bits=0, reason=reason)
    if bits == 8:
        return layer
    value = constant_of(layer.weight)
    assert value is not None
    columns = value.shape[0 if layer.is_transposed else 1]
    if layer.is_embedding:
        reason = "an embedding table"
    elif columns % group_size:
        reason = f"rows of {columns} are no multiple of the group of {group_size}"
    elif gives_model_output(layer.node):
        reason = "the head: it gives the model's output"
    return replace(layer, bits=8, reason=reason) if reason else replace(layer, bits=4)


def _refusal(layer: WeightLayer) -> str:
    """Why the weight stays floating, whatever is asked for."""
    weight, node = constant_of(layer.weight), layer.node
    if is_kept_float32(node):
        return "kept in float32 (keep_float32)"
    if weight is None:
        return "its weight is computed" if node.target is aten.linear.default else "a product of two activations"
    if weight.dim() != 2:
        return "its weight is not a matrix"
    if not weight.is_floating_point():
        return "its weight holds integers"
    if weight.dtype is torch.float64:
        return "it computes in float64"
    if weight.numel() < SMALLEST_NUMEL:
        return f"its weight has fewer than {SMALLEST_NUMEL} elements"
    if not bool(weight.isfinite().all()):
        return "its weight has NaN or infinity in it"
    if node.target is aten.addmm.default and (node.kwargs.get("beta", 1) != 1 or node.kwargs.get("alpha", 1) != 1):
        return "a product with factors (beta, alpha)"
    return ""
