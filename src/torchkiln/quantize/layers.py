"""layers: the convolutions and matrix products of a lowered graph, and which of them become int8."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from ..lower.graph_edit import constant_of
from ..lower.keep_float32 import module_paths
from .options import QuantizeOptions

aten = torch.ops.aten

#: Operator -> (position of the input, position of the weight, dimension of the weight that is the output channel).
_WEIGHTED = {
    aten.convolution.default: (0, 1, 0),
    aten.linear.default: (0, 1, 0),
    aten.mm.default: (0, 1, 1),
    aten.matmul.default: (0, 1, 1),
    aten.addmm.default: (1, 2, 1),
}
_PRODUCTS = {
    aten.bmm.default: "a product of two activations",
    aten.baddbmm.default: "a product of two activations",
    aten.scaled_dot_product_attention.default: "attention: its softmax needs a floating-point range",
}
#: What may stand between a layer and the output for the layer to count as the head.
_MOST_OPS_TO_OUTPUT = 4


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product.

    Attributes:
        name: the module it comes from ("layer1.0.conv1"), the same however the model is captured; unique in the graph.
        node: its node.
        reason: why it stays in floating point; "" when it becomes int8.
        input_index, weight_index: the positions of its input and weight among the node's arguments; -1 where it has no weight.
        channel_axis: the dimension of the weight that is the output channel.
    """

    name: str
    node: Node
    reason: str
    input_index: int = -1
    weight_index: int = -1
    channel_axis: int = 0

    @property
    def is_quantized(self) -> bool:
        return not self.reason

    @property
    def source(self) -> Node | None:
        """What it reads; None for a layer that has no weight."""
        found = self.node.args[self.input_index] if self.input_index >= 0 else None
        return found if isinstance(found, Node) else None

    @property
    def weight(self) -> Node | None:
        found = self.node.args[self.weight_index] if self.weight_index >= 0 else None
        return found if isinstance(found, Node) else None

    @property
    def is_weighted(self) -> bool:
        return self.weight_index >= 0


def find_layers(graph_module: GraphModule, options: QuantizeOptions) -> list[Layer]:
    """Every layer in the graph's order, with the reason of each that stays in floating point."""
    names = Names()
    layers = []
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _PRODUCTS:
            layers.append(Layer(names.of(node), node, _PRODUCTS[node.target]))
        elif node.target in _WEIGHTED:
            layers.append(_read_layer(node, names.of(node), options))
    return layers


def _read_layer(node: Node, name: str, options: QuantizeOptions) -> Layer:
    input_index, weight_index, axis = _WEIGHTED[node.target]  # type: ignore[index]
    reason = _shape_reason(node, input_index, weight_index)
    if reason:
        return Layer(name, node, reason)
    return Layer(name, node, choice_reason(node, name, options), input_index, weight_index, axis)


def _shape_reason(node: Node, input_index: int, weight_index: int) -> str:
    """Why this layer cannot become int8, whatever the options say."""
    source, weight = node.args[input_index], constant_of(node.args[weight_index])
    if weight is None:
        return "its weight is computed" if node.target in (aten.convolution.default, aten.linear.default) else "a product of two activations"
    if constant_of(source) is not None or not isinstance(source, Node):
        return "its input is a constant"
    if not weight.is_floating_point():
        return "its weight holds integers"
    if weight.dtype is torch.float64:
        return "it computes in float64"
    if weight.dim() < 2 or (node.target is not aten.convolution.default and weight.dim() != 2):
        return "its weight is not a matrix"
    if node.target is aten.convolution.default and node.args[6]:
        return "a transposed convolution"
    return ""


def choice_reason(node: Node, name: str, options: QuantizeOptions) -> str:
    """Why this layer stays in floating point by the options."""
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.skip):
        return "QuantizeOptions.skip names it"
    if is_depthwise(node) and not options.depthwise:
        return "a depthwise convolution (QuantizeOptions.depthwise)"
    if not options.stem and _reads_model_input(node):
        return "the stem: it reads the model's input (QuantizeOptions.stem)"
    if not options.head and gives_model_output(node):
        return "the head: it gives the model's output (QuantizeOptions.head)"
    return ""


def is_depthwise(node: Node) -> bool:
    """Whether this is a convolution in groups of one input channel each."""
    target, weight = node.target, node.args[1]
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.name.startswith("aten::conv") or not isinstance(weight, Node):
        return False
    position = [argument.name for argument in target._schema.arguments].index("groups")
    groups = node.args[position] if position < len(node.args) else node.kwargs.get("groups", 1)
    return bool(groups != 1 and weight.meta["val"].shape[1] == 1)


def _reads_model_input(node: Node) -> bool:
    """Whether only views, casts and arithmetic with constants lie between the model's input and this layer."""
    seen: set[Node] = set()
    waiting = [n for n in node.all_input_nodes if n.op != "get_attr"]
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if source.op == "placeholder":
            return True
        if _is_simple(source):
            waiting += [n for n in source.all_input_nodes if n.op != "get_attr" and isinstance(n.meta.get("val"), torch.Tensor)]
    return False


def gives_model_output(node: Node) -> bool:
    """Whether its result is an output of the model, or becomes one by pointwise operators and views alone."""
    waiting = [(node, 0)]
    while waiting:
        source, distance = waiting.pop()
        for user in source.users:
            if user.op == "output":
                return True
            if distance < _MOST_OPS_TO_OUTPUT and _is_simple(user):
                waiting.append((user, distance + 1))
    return False


_SIMPLE = {
    "view",
    "reshape",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "slice",
    "select",
    "expand",
    "clone",
    "_to_copy",
    "sub",
    "mul",
    "div",
    "softmax",
    "_softmax",
    "log_softmax",
    "_log_softmax",
    "sigmoid",
    "upsample_bilinear2d",
    "upsample_nearest2d",
    "pad",
    "constant_pad_nd",
}


def _is_simple(node: Node) -> bool:
    """A view, a cast, or arithmetic with one activation: no layer, no norm, no sum of two branches."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target._schema.name.split("::")[1] not in _SIMPLE:
        return False
    activations = [n for n in node.all_input_nodes if n.op != "get_attr" and isinstance(n.meta.get("val"), torch.Tensor)]
    return len(activations) == 1


class Names:
    """Names for layers: the path of the module, and a number where one module holds or makes several."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def of(self, node: Node) -> str:
        paths = module_paths(node)
        base = paths[-1] if paths else str(node.target._schema.name.split("::")[1])  # type: ignore[union-attr]
        self._taken[base] += 1
        return base if self._taken[base] == 1 else f"{base}#{self._taken[base]}"
