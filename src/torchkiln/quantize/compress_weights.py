"""compress_weights: a lowered program -> the same with its matrices of weights in 8 or 4 bits; activations stay floating. Needs no data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from ..errors import UserError
from ..lower.graph_edit import constant_of, insert_call, insert_constant, is_same_size
from ..lower.graph_edit import replace as replace_node
from ..lower.remove_dead_code import remove_dead_code
from ..program import Program
from ..progress import progress
from ..quantized_ops import WEIGHT4, WEIGHT8, has_quantized_ops, register_quantized_ops
from .insert_quantize import WEIGHT_RANGE, quantize_weight
from .quantize_program import QuantizedProgram, constant_bytes, copy_graph
from .round_weight import INT4_RANGE, pack_int4, round_to_int4
from .weight_layers import WeightLayer, find_weight_layers

aten = torch.ops.aten


def compress_weights(program: Program, precision: str, group_size: int) -> QuantizedProgram:
    """A copy of the lowered ``program`` with the weights of its linear layers, products with constants and embedding tables in ``precision``
    ("int8" or "int4"); ``program`` itself is not changed. int4 has a scale for each ``group_size`` inputs of an output.

    Raises UserError when the model is quantized already, or has no weight to compress.
    """
    if has_quantized_ops(program.graph_module.graph):
        raise UserError("weight_precision: the model has quantize/dequantize pairs of its own: leave it out")
    graph_module = copy_graph(program.graph_module)
    layers = find_weight_layers(graph_module, {"int8": 8, "int4": 4}[precision], group_size)
    if not any(layer.bits for layer in layers):
        raise UserError(f"weight_precision: no weight of the model can be compressed. {weights_note(layers, group_size)}")
    float_bytes = constant_bytes(graph_module)
    errors = _Errors()
    _Compression(graph_module, group_size, errors).run([layer for layer in layers if layer.bits])
    remove_dead_code(graph_module)
    graph_module.recompile()
    compressed = replace(program, graph_module=graph_module, notes=list(program.notes))
    kind = WEIGHT4 if any(layer.bits == 4 for layer in layers) else WEIGHT8
    return QuantizedProgram(compressed, [weights_note(layers, group_size), str(errors)], kind=kind, float_bytes=float_bytes)


def weights_note(layers: Sequence[WeightLayer], group_size: int) -> str:
    """``weights: 36 of 38 layers in int4 by groups of 128, 1 in int8 (1 an embedding table: words); in floating point: ...``."""
    parts = []
    for bits, words in ((4, f"in int4 by groups of {group_size}"), (8, "in int8")):
        held = [layer for layer in layers if layer.bits == bits]
        if held:
            reasons = _reasons([layer for layer in held if layer.reason])
            parts.append(f"{len(held)} of {len(layers)} layers {words}" + (f" ({reasons})" if reasons else ""))
    left = [layer for layer in layers if not layer.bits]
    floating = f"; in floating point: {_reasons(left)}" if left else ""
    return f"weights: {', '.join(parts) or 'none'}{floating}"


def _reasons(layers: Sequence[WeightLayer]) -> str:
    """Every reason with the number and the names of the first layers that it holds for."""
    parts = []
    for reason, count in Counter(layer.reason for layer in layers).most_common():
        names = [layer.name for layer in layers if layer.reason == reason]
        parts.append(f"{count} {reason}: {', '.join(names[:3])}{', ...' if count > 3 else ''}")
    return "; ".join(parts)


@dataclass
class _Errors:
    """How far the rounded weights are from the weights: squared norms over all, and the layer that is worst."""

    error: float = 0.0
    norm: float = 0.0
    worst: float = -1.0
    worst_name: str = ""

    def add(self, name: str, weight: torch.Tensor, rounded: torch.Tensor) -> None:
        error, norm = (rounded - weight.float()).square().sum().item(), weight.float().square().sum().item()
        self.error, self.norm = self.error + error, self.norm + norm
        relative = (error / norm) ** 0.5 if norm else 0.0
        if relative > self.worst:
            self.worst, self.worst_name = relative, name

    def __str__(self) -> str:
        whole = (self.error / self.norm) ** 0.5 if self.norm else 0.0
        return f"weights: relative error of what was rounded {whole:.1e}, at most {self.worst:.1e} ({self.worst_name})"


@dataclass(frozen=True)
class _Stored:
    """A weight (out, in) in the graph: the nodes of its integers and scales, and the node that makes it floating again, placed before ``reader``."""

    integers: Node
    scales: Node
    floats: Node


class _Compression:
    """Rewrites the readers of each weight. A weight that several layers read is stored once."""

    def __init__(self, graph_module: GraphModule, group_size: int, errors: _Errors) -> None:
        self._graph_module = graph_module
        self._group_size = group_size
        self._errors = errors
        self._stored: dict[Node, _Stored] = {}

    def run(self, layers: Sequence[WeightLayer]) -> None:
        for done, layer in enumerate(layers):
            progress("compress weights", done, len(layers))
            stored = self._stored.get(layer.weight)
            if stored is None:
                stored = self._stored[layer.weight] = self._store(layer)
            if layer.is_embedding:
                self._rewrite_embedding(layer.node, stored)
            else:
                self._rewrite_product(layer.node, stored.floats)
        progress("compress weights", len(layers), len(layers))

    def _store(self, layer: WeightLayer) -> _Stored:
        weight = constant_of(layer.weight)
        assert weight is not None
        matrix = (weight.detach().t() if layer.is_transposed else weight.detach()).contiguous()
        ops, dtype, name = register_quantized_ops(), weight.dtype, str(layer.weight.target)
        if layer.bits == 8:
            integers, scales = quantize_weight(matrix, 0)
            rounded = integers * scales[:, None]
            stored, spread = self._constant(layer, f"{name}_int8", integers), self._constant(layer, f"{name}_scales", scales)
            zeros = self._constant(layer, f"{name}_zeros", torch.zeros(len(scales), dtype=torch.int64, device=scales.device))
            arguments: tuple[object, ...] = (stored, spread, zeros, 0, *WEIGHT_RANGE, torch.int8)
            kwargs: dict[str, object] = {} if dtype is torch.float32 else {"out_dtype": dtype}
            floats = self._call(layer, ops.dequantize_per_channel.default, arguments, kwargs)
        else:
            integers, scales = round_to_int4(matrix, self._group_size)
            rounded = (integers.unflatten(1, (-1, self._group_size)) * scales[..., None]).flatten(1)
            packed, spread = self._constant(layer, f"{name}_int4", pack_int4(integers)), self._constant(layer, f"{name}_scales", scales)
            stored = self._unpack(layer, packed, list(integers.shape))
            arguments = (stored, spread, None, *INT4_RANGE, torch.int8, self._group_size, dtype)
            floats = self._call(layer, ops.dequantize_per_channel_group.default, arguments)
        self._errors.add(layer.name, matrix, rounded)
        return _Stored(stored, spread, floats)

    def _unpack(self, layer: WeightLayer, packed: Node, shape: list[int]) -> Node:
        """The integers (rows, columns) of ``pack_int4``: shifts of int8 keep the sign."""
        high_half = self._call(layer, aten.bitwise_left_shift.Tensor_Scalar, (packed, 4))
        even = self._call(layer, aten.bitwise_right_shift.Tensor_Scalar, (high_half, 4))
        odd = self._call(layer, aten.bitwise_right_shift.Tensor_Scalar, (packed, 4))
        pairs = self._call(layer, aten.stack.default, ([even, odd], -1))
        return self._call(layer, aten.view.default, (pairs, shape))

    def _rewrite_product(self, node: Node, weight: Node) -> None:
        """A product with a constant as a linear layer, whose weight is (out, in)."""
        if node.target is aten.linear.default:
            node.update_arg(1, weight)
            return
        bias, source = (node.args[0], node.args[1]) if node.target is aten.addmm.default else (None, node.args[0])
        joins = isinstance(bias, Node) and bias.meta["val"].dim() == 1 and is_same_size(bias.meta["val"].shape[0], weight.meta["val"].shape[0])
        result = insert_call(self._graph_module, aten.linear.default, (source, weight, *([bias] if joins else [])), before=node)
        if bias is not None and not joins:
            result = insert_call(self._graph_module, aten.add.Tensor, (result, bias), before=node)
        replace_node(node, result)

    def _rewrite_embedding(self, node: Node, stored: _Stored) -> None:
        """Rows are looked up as integers, and only those made floating."""
        spread = insert_call(self._graph_module, aten.unsqueeze.default, (stored.scales, 1), before=node)
        rows = insert_call(self._graph_module, aten.embedding.default, (stored.integers, *node.args[1:]), dict(node.kwargs), before=node)
        scales = insert_call(self._graph_module, aten.embedding.default, (spread, *node.args[1:]), dict(node.kwargs), before=node)
        floats = insert_call(self._graph_module, aten.mul.Tensor, (rows, scales), before=node)
        if floats.meta["val"].dtype is not node.meta["val"].dtype:
            floats = insert_call(self._graph_module, aten._to_copy.default, (floats,), {"dtype": node.meta["val"].dtype}, before=node)
        replace_node(node, floats)

    def _constant(self, layer: WeightLayer, name: str, value: torch.Tensor) -> Node:
        return insert_constant(self._graph_module, name, value, before=layer.weight)

    def _call(self, layer: WeightLayer, target: object, arguments: tuple[object, ...], kwargs: dict[str, object] | None = None) -> Node:
        return insert_call(self._graph_module, target, arguments, kwargs, before=layer.weight, like=layer.node)  # type: ignore[arg-type]
