"""convert: a segment in a compute precision as an ONNX graph, its weights beside it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from ...dtypes import precision_name
from ...engine.safetensors_member import tensor_bytes
from ...errors import BuildFailed
from ...partition.narrow_segment import narrow_segment
from ...partition.segment import Segment
from ..call_plan import CallPlan
from ..copy_graph_module import copy_graph_module
from ..onnx_export import export_onnx, first_line, import_onnx_ir, take_weights
from .fixes import fix_graph


@dataclass
class OnnxGraph:
    """What TensorRT parses, and what goes around it.

    Attributes:
        proto: the graph as ONNX protobuf, without its large weights (so that their size is not bound by protobuf's 2 GB).
        weights: those weights by the names the graph has for them, in the graph's dtypes.
        segment: the segment that the graph computes, in float32: without inputs that are not used and outputs that need no computing.
        plan, constants: how a call of the whole segment follows from a call of the graph.
        inputs, outputs: the graph's own names, in order.
    """

    proto: bytes
    weights: dict[str, torch.Tensor]
    segment: Segment
    plan: CallPlan
    constants: dict[str, torch.Tensor]
    inputs: list[str]
    outputs: list[str]

    @property
    def sha256(self) -> str:
        """Of the graph alone: equal for two models that differ in their (taken) weights only."""
        return hashlib.sha256(self.proto).hexdigest()

    def weight_digests(self) -> dict[str, str]:
        """The sha256 of each weight's bytes."""
        return {name: hashlib.sha256(tensor_bytes(weight).numpy().data).hexdigest() for name, weight in self.weights.items()}


def convert_segment(segment: Segment, precision: torch.dtype, *, all_weights: bool = False) -> OnnxGraph:
    """The segment through torchkiln's precision pass and torch's ONNX exporter. Inputs and outputs keep their dtypes. Converted once for a
    precision; the segment itself is not changed.

    Args:
        all_weights: take the small weights out of the graph too, for plans whose weights are to be replaced.

    Raises BuildFailed with the exporter's message.
    """
    key = ("tensorrt", precision, all_weights)
    if key not in segment.prepared:
        segment.prepared[key] = _convert(segment, precision, all_weights)
    return segment.prepared[key]


def _convert(segment: Segment, precision: torch.dtype, all_weights: bool) -> OnnxGraph:
    import_onnx_ir()
    narrowed = narrow_segment(segment)
    if narrowed.segment is None:
        raise BuildFailed(f"tensorrt: {segment.name} computes nothing: every output is an input or a constant")
    graph_module = copy_graph_module(narrowed.segment.graph_module)
    if precision is not torch.float32:
        from ...lower.convert_precision import convert_precision

        convert_precision(graph_module, precision)
    fix_graph(graph_module)
    try:
        program = export_onnx(replace(narrowed.segment, graph_module=graph_module).export())
    except Exception as error:  # torch.export and the exporter raise what they like; all of it means that the segment cannot be converted
        name = precision_name(precision)
        raise BuildFailed(f"torch.onnx cannot export {segment.name} in {name}: {type(error).__name__}: {first_line(error)}") from error
    model = program.model
    for part in (model, model.graph, *model.graph):
        part.metadata_props.clear()  # stack traces and the like: they hold paths, and differ where the graph is the same
    weights = take_weights(model, small_too=all_weights)
    return OnnxGraph(
        proto=program.model_proto.SerializeToString(),
        weights=weights,
        segment=narrowed.segment,
        plan=narrowed.plan,
        constants=narrowed.constants,
        inputs=[value.name for value in model.graph.inputs],
        outputs=[value.name for value in model.graph.outputs],
    )
