"""tensors: which values of a graph are quantized, and who reads them as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from ..lower.graph_edit import is_same_sizes
from .layers import Layer, find_layers
from .options import QuantizeOptions

aten = torch.ops.aten


@dataclass
class QuantizedTensor:
    """A value that some nodes read in int8, by one scale.

    Attributes:
        name: as the calibration cache has it: the layer that reads it first, or gives it, and which of the two.
        source: the node that computes it.
        readers: (node, position of the argument) of those that read it in int8.
    """

    name: str
    source: Node
    readers: list[tuple[Node, int]] = field(default_factory=list)


def find_tensors(graph_module: GraphModule, layers: Sequence[Layer], options: QuantizeOptions) -> list[QuantizedTensor]:
    """The inputs of the int8 layers and, if asked for, what is added to their results."""
    found: dict[Node, QuantizedTensor] = {}
    for layer in layers:
        if layer.is_quantized and layer.source is not None:
            found.setdefault(layer.source, QuantizedTensor(f"{layer.name}.input", layer.source)).readers.append((layer.node, layer.input_index))
    if options.residuals:
        _add_residuals(graph_module, layers, found)
    return list(found.values())


def observed_tensors(graph_module: GraphModule) -> dict[Node, str]:
    """Every value that some choice of options quantizes: source -> name. The names do not depend on the options."""
    everything = QuantizeOptions(stem=True, head=True, depthwise=True, residuals=True)
    layers = find_layers(graph_module, everything)
    return {tensor.source: tensor.name for tensor in find_tensors(graph_module, layers, everything)}


def _add_residuals(graph_module: GraphModule, layers: Sequence[Layer], found: dict[Node, QuantizedTensor]) -> None:
    """Sums of a convolution's result, which nothing else reads, and a tensor of the same shape that is quantized or a convolution's result too."""
    convolutions = {layer.node: layer for layer in layers if layer.is_quantized and layer.node.target is aten.convolution.default}
    for node in graph_module.graph.find_nodes(op="call_function", target=aten.add.Tensor):
        position = _residual_position(node, convolutions, found)
        if position is None:
            continue
        source = node.args[position]
        name = f"{convolutions[source].name}.output" if source in convolutions else ""
        found.setdefault(source, QuantizedTensor(name, source)).readers.append((node, position))


def _residual_position(node: Node, convolutions: dict[Node, Layer], found: dict[Node, QuantizedTensor]) -> int | None:
    """Which argument of a sum is quantized beside the convolution that computes the other; None where the sum is none of that kind."""
    left, right = node.args[:2]
    if not (isinstance(left, Node) and isinstance(right, Node)) or left is right or node.kwargs.get("alpha", 1) != 1:
        return None
    if not is_same_sizes(left.meta["val"].shape, right.meta["val"].shape):
        return None
    fused = [value in convolutions and len(value.users) == 1 for value in (left, right)]
    for position, other in ((1, 0), (0, 1)):
        if fused[other] and node.args[position] in found:
            return position
    return 1 if all(fused) else None
