"""What an inference batch norm computes: ``scale * x + shift``, one scale and one shift a channel (dimension 1)."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .graph_edit import constant_of

aten = torch.ops.aten
BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten._batch_norm_no_update.default, aten.batch_norm.default)


@dataclass
class Affine:
    """``result = scale * source + shift``; scale and shift are float64 of shape (channels,), on the model's device."""

    source: Node
    node: Node
    result: Node
    """What the others read: ``node`` itself, or its item 0."""
    scale: torch.Tensor
    shift: torch.Tensor

    def erase(self) -> None:
        """Remove the batch norm from the graph, once nothing reads its result."""
        graph = self.node.graph
        for item in list(self.node.users):
            graph.erase_node(item)
        graph.erase_node(self.node)


def read_batch_norm(node: Node) -> Affine | None:
    """The affine map of a batch norm with constant statistics; None when it uses the batch's own, or its other results are read."""
    if node.target is aten.batch_norm.default:
        source, weight, bias, mean, var, training, _, eps = node.args[:8]
        if training is not False:
            return None
    else:
        source, weight, bias, mean, var, _, eps = node.args
    mean_value, var_value = constant_of(mean), constant_of(var)
    result = _result_of(node)
    if result is None or mean_value is None or var_value is None or not isinstance(source, Node):
        return None
    weight_value, bias_value = _or_default(weight, 1.0, mean_value), _or_default(bias, 0.0, mean_value)
    if weight_value is None or bias_value is None:
        return None
    assert isinstance(eps, float)
    scale = weight_value / torch.sqrt(var_value.double() + eps)
    return Affine(source, node, result, scale, bias_value - mean_value.double() * scale)


def _or_default(value: Any, default: float, like: torch.Tensor) -> torch.Tensor | None:
    if value is None:
        return torch.full_like(like, default, dtype=torch.float64)
    constant = constant_of(value)
    return None if constant is None else constant.double()


def _result_of(node: Node) -> Node | None:
    if node.target is aten.batch_norm.default:
        return node
    if not all(user.target is operator.getitem for user in node.users):
        return None
    read = [user for user in node.users if user.users]
    return read[0] if len(read) == 1 and read[0].args[1] == 0 else None
