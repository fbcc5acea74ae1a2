"""quantize_program: a lowered program and its calibration -> the program in the quantize/dequantize dialect, and what became int8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import UserError
from ..program import Program
from ..quantized_ops import has_quantized_ops, is_dequantize
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
    """

    program: Program
    notes: list[str]
    sample: list[torch.Tensor] | None = None
    is_own: bool = False
    checks_itself: bool = False


def quantize_program(program: Program, calibrator: Calibrator, *, unsigned: bool = False) -> QuantizedProgram:
    """A copy of the lowered ``program`` in int8; ``program`` itself is not changed. ``unsigned``: see insert_quantize.

    Raises UserError: see the calibrators.
    """
    if has_quantized_ops(program.graph_module.graph):
        raise UserError("calibrator: the model has quantize/dequantize pairs of its own, which say the ranges already: leave the calibrator out")
    calibration = calibrator.calibrate(program)
    options = calibrator.options or calibration.options
    quantized = replace(program, graph_module=_copy(program.graph_module), notes=list(program.notes))
    graph_module = quantized.graph_module
    layers = find_layers(graph_module, options)
    if not any(layer.is_quantized for layer in layers):
        raise UserError(f"int8: no layer of the model can be quantized. {layers_note(layers)}")
    insert_quantize(graph_module, layers, find_tensors(graph_module, layers, options), calibration.tensors, unsigned=unsigned)
    kind = f"{calibration.algorithm} {calibration.percentile:g}" if calibration.algorithm == "percentile" else calibration.algorithm
    how = f"int8: calibrated by {kind} over {calibration.samples} samples in {calibration.batches} batches"
    return QuantizedProgram(quantized, [how, layers_note(layers)], calibrator.sample)


def read_quantized_model(program: Program) -> QuantizedProgram | None:
    """The program of a model that has quantize/dequantize pairs of its own; None for any other."""
    if not has_quantized_ops(program.graph_module.graph):
        return None
    layers = [_of_own_pairs(layer) for layer in find_layers(program.graph_module, QuantizeOptions(stem=True, head=True, depthwise=True))]
    return QuantizedProgram(program, ["int8: by the model's own quantize/dequantize pairs", layers_note(layers)], is_own=True, checks_itself=True)


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


def _copy(graph_module: GraphModule) -> GraphModule:
    """A graph of its own over the same tensors."""
    graph, values = Graph(), {}  # type: ignore[var-annotated]
    output = graph.output(graph.graph_copy(graph_module.graph, values))
    original = graph_module.graph.output_node()
    output.meta = dict(original.meta)
    return GraphModule(graph_module, graph, class_name=type(graph_module).__name__)
