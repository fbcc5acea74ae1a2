"""quantize_program: a lowered program and its calibration -> the program in the quantize/dequantize dialect, and what became int8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import UserError
from ..lower.graph_edit import constant_of
from ..lower.keep_float32 import is_kept_float32
from ..program import Program
from ..quantized_ops import INT8, has_quantized_ops, is_dequantize, quantization_kind
from .calibrator import Calibrator
from .insert_quantize import insert_quantize
from .layers import Layer, find_layers
from .options import QuantizeOptions
from .tensors import find_tensors


@dataclass
class QuantizedProgram:
    """A program with quantize/dequantize pairs.

    Attributes:
        program: its graph in the dialect.
        notes: for the report: how it was calibrated, how many layers are int8, and which are not and why.
        sample: inputs to check it with, from the calibration data; None where there was none.
        is_own: whether the pairs are the source model's own.
        checks_itself: whether engines are compared with the quantized graph in PyTorch, not with a float model.
        kind: INT8, WEIGHT8 or WEIGHT4 of quantized_ops.
        float_bytes: size of the constants of the program that it was made of; 0 where that is not known.
    """

    program: Program
    notes: list[str]
    sample: list[torch.Tensor] | None = None
    is_own: bool = False
    checks_itself: bool = False
    kind: str = INT8
    float_bytes: int = 0


def quantize_program(program: Program, calibrator: Calibrator, *, unsigned: bool = False, only: Collection[str] | None = None) -> QuantizedProgram:
    """A copy of the lowered ``program`` in int8; ``program`` itself is not changed. Nodes that are kept in float32 stay as they are.

    Args:
        unsigned: see insert_quantize.
        only: names of the layers that may become int8. Default: all that the calibrator's options allow.

    Raises UserError: see the calibrators.
    """
    if has_quantized_ops(program.graph_module.graph):
        raise UserError("calibrator: the model has quantize/dequantize pairs of its own, which say the ranges already: leave the calibrator out")
    calibration = calibrator.calibrate(program)
    options = calibrator.options or calibration.options
    quantized = replace(program, graph_module=copy_graph(program.graph_module), notes=list(program.notes))
    graph_module = quantized.graph_module
    layers = [_as_asked(layer, only) for layer in find_layers(graph_module, options)]
    if not any(layer.is_quantized for layer in layers):
        raise UserError(f"int8: no layer of the model can be quantized. {layers_note(layers)}")
    tensors = find_tensors(graph_module, layers, options)
    for tensor in tensors:
        tensor.readers = [(node, position) for node, position in tensor.readers if not is_kept_float32(node)]
    insert_quantize(graph_module, layers, [tensor for tensor in tensors if tensor.readers], calibration.tensors, unsigned=unsigned)
    kind = f"{calibration.algorithm} {calibration.percentile:g}" if calibration.algorithm == "percentile" else calibration.algorithm
    how = f"int8: calibrated by {kind} over {calibration.samples} samples in {calibration.batches} batches"
    return QuantizedProgram(quantized, [how, layers_note(layers)], calibrator.sample)


def _as_asked(layer: Layer, only: Collection[str] | None) -> Layer:
    if layer.is_quantized and is_kept_float32(layer.node):
        return replace(layer, reason="kept in float32 (keep_float32)")
    if layer.is_quantized and only is not None and layer.name not in only:
        return replace(layer, reason="too sensitive (precision search)")
    return layer


def read_quantized_model(program: Program) -> QuantizedProgram | None:
    """The program of a model that has quantize/dequantize pairs of its own; None for any other."""
    if not has_quantized_ops(program.graph_module.graph):
        return None
    kind = quantization_kind(program.graph_module.graph)
    layers = find_layers(program.graph_module, QuantizeOptions(stem=True, head=True, depthwise=True))
    if kind == INT8:
        notes = ["int8: by the model's own quantize/dequantize pairs", layers_note([_of_own_pairs(layer) for layer in layers])]
    else:
        held = sum(any(map(_is_dequantized, layer.node.args[:3])) for layer in layers)
        notes = [f"weights: the model's own, kept as integers in {held} of {len(layers)} layers"]
    return QuantizedProgram(program, notes, is_own=True, checks_itself=True, kind=kind)


def _of_own_pairs(layer: Layer) -> Layer:
    operands = [layer.node.args[i] for i in ((1, 2) if layer.node.target is torch.ops.aten.addmm.default else (0, 1))]
    return replace(layer, reason="" if all(map(_is_dequantized, operands)) else "the model does not quantize both its operands")


def _is_dequantized(value: object) -> bool:
    """Whether a value comes from a dequantize node, through views."""
    while isinstance(value, Node) and isinstance(value.target, torch._ops.OpOverload) and value.target.is_view:
        value = value.args[0]
    return is_dequantize(value)


def layers_note(layers: Sequence[Layer]) -> str:
    """``int8: 52 of 54 layers; in floating point: 1 the stem: conv1; ...``: every reason, with the names of the first layers it holds for."""
    quantized = sum(layer.is_quantized for layer in layers)
    reasons = Counter(layer.reason for layer in layers if not layer.is_quantized)
    parts = []
    for reason, count in reasons.most_common():
        names = [layer.name for layer in layers if layer.reason == reason]
        shown = ", ".join(names[:3]) + (", ..." if count > 3 else "")
        parts.append(f"{count} {reason} ({shown})")
    left = f"; in floating point: {'; '.join(parts)}" if parts else ""
    return f"int8: {quantized} of {len(layers)} layers{left}"


def copy_graph(graph_module: GraphModule) -> GraphModule:
    """A graph of its own over the same tensors."""
    graph, values = Graph(), {}  # type: ignore[var-annotated]
    output = graph.output(graph.graph_copy(graph_module.graph, values))
    original = graph_module.graph.output_node()
    output.meta = dict(original.meta)
    return GraphModule(graph_module, graph, class_name=type(graph_module).__name__)


def constant_bytes(graph_module: GraphModule) -> int:
    """Size of the tensors that the graph reads, each counted once."""
    tensors = {id(tensor): tensor for node in graph_module.graph.find_nodes(op="get_attr") if (tensor := constant_of(node)) is not None}
    return sum(tensor.nbytes for tensor in tensors.values())
