"""fold_batch_norm: an inference batch norm is an affine map a channel; put it into the weights of the convolution or linear beside it.

Folded: batch norm after a convolution (1-D to 3-D, transposed too) or a linear whose result nothing else reads, and batch norm before
a convolution without padding, or before a linear. (With padding, the border would see 0 where it saw the batch norm of 0.)
The arithmetic is done in float64, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .batch_norm import BATCH_NORMS, Affine, read_batch_norm
from .graph_edit import call_functions, constant_of, insert_constant

aten = torch.ops.aten


def fold_batch_norm(graph_module: GraphModule) -> int:
    """Returns the number of batch norms folded away."""
    folded = 0
    for node in call_functions(graph_module, *BATCH_NORMS):
        affine = read_batch_norm(node)
        if affine is None:
            continue
        if _fold_into_producer(graph_module, affine) or _fold_into_consumer(graph_module, affine):
            folded += 1
    if folded:
        graph_module.recompile()
    return folded


def _fold_into_producer(graph_module: GraphModule, affine: Affine) -> bool:
    layer = _read_layer(affine.source)
    if layer is None or len(layer.node.users) != 1:
        return False
    scale, shift = affine.scale, affine.shift
    layer.set(graph_module, layer.weight.double() * layer.over_output_channels(scale), layer.bias_or_zero() * scale + shift)
    affine.result.replace_all_uses_with(layer.node)
    affine.erase()
    return True


def _fold_into_consumer(graph_module: GraphModule, affine: Affine) -> bool:
    users = list(affine.result.users)
    layer = _read_layer(users[0]) if len(users) == 1 else None
    if layer is None or layer.node.args[0] is not affine.result or layer.is_transposed or layer.has_padding:
        return False
    weight = layer.weight.double()
    moved = (weight * layer.over_input_channels(affine.shift)).flatten(1).sum(1)
    layer.set(graph_module, weight * layer.over_input_channels(affine.scale), layer.bias_or_zero() + moved)
    layer.node.replace_input_with(affine.result, affine.source)
    affine.erase()
    return True


@dataclass
class _Layer:
    """A convolution or linear with constant weights."""

    node: Node
    weight: torch.Tensor
    bias: torch.Tensor | None
    groups: int
    is_transposed: bool
    has_padding: bool

    @property
    def out_channels(self) -> int:
        return self.weight.shape[1] * self.groups if self.is_transposed else self.weight.shape[0]

    def bias_or_zero(self) -> torch.Tensor:
        zeros = torch.zeros(self.out_channels, dtype=torch.float64, device=self.weight.device)
        return zeros if self.bias is None else self.bias.double()

    def over_output_channels(self, values: torch.Tensor) -> torch.Tensor:
        """``values``, one an output channel, in the shape that multiplies the weight."""
        rest = [1] * (self.weight.dim() - 2)
        if not self.is_transposed:
            return values.reshape(-1, 1, *rest)
        # The weight is (in, out / groups, ...), and the inputs of one group are neighbours.
        by_group = values.reshape(self.groups, 1, -1).expand(-1, self.weight.shape[0] // self.groups, -1)
        return by_group.reshape(self.weight.shape[0], self.weight.shape[1], *rest)

    def over_input_channels(self, values: torch.Tensor) -> torch.Tensor:
        """``values``, one an input channel, in the shape that multiplies the weight (out, in / groups, ...)."""
        out, in_group = self.weight.shape[:2]
        by_group = values.reshape(self.groups, 1, in_group).expand(-1, out // self.groups, -1)
        return by_group.reshape(out, in_group, *[1] * (self.weight.dim() - 2))

    def set(self, graph_module: GraphModule, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Give the layer these weights; the old ones stay for whoever else reads them."""
        dtype, weight_node = self.weight.dtype, self.node.args[1]
        assert isinstance(weight_node, Node)
        name = str(weight_node.target)
        bias_name = str(self.node.args[2].target) if len(self.node.args) > 2 and isinstance(self.node.args[2], Node) else f"{name}_bias"
        new_weight = insert_constant(graph_module, f"{name}_folded", weight.to(dtype).contiguous(), before=self.node)
        new_bias = insert_constant(graph_module, f"{bias_name}_folded", bias.to(dtype), before=self.node)
        self.node.args = (self.node.args[0], new_weight, new_bias, *self.node.args[3:])


def _read_layer(node: Any) -> _Layer | None:
    if not isinstance(node, Node) or node.op != "call_function" or node.target not in (aten.convolution.default, aten.linear.default):
        return None
    weight = constant_of(node.args[1])
    bias_node = node.args[2] if len(node.args) > 2 else None
    bias = constant_of(bias_node)
    if weight is None or (bias is None and bias_node is not None):
        return None
    if node.target is aten.linear.default:
        # Batch norm takes dimension 1 as the channel, linear the last one: the same only for 2-D tensors.
        return _Layer(node, weight, bias, 1, False, False) if node.meta["val"].dim() == 2 and weight.dim() == 2 else None
    _, _, _, _, padding, _, transposed, _, groups = node.args
    assert isinstance(padding, (list, tuple))
    assert isinstance(transposed, bool)
    assert isinstance(groups, int)
    # A weight of 8 channels may see 3-D input without a batch: then dimension 1 is no channel.
    if node.meta["val"].dim() != weight.dim():
        return None
    return _Layer(node, weight, bias, groups, transposed, any(p != 0 for p in padding))
