"""build: a segment as an OpenVINO artifact: the IR's XML as payload, its weights as one tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...dtypes import precision_name
from ...engine.artifact import Artifact
from ...errors import BuildFailed, TargetMismatch
from ...partition.narrow_segment import narrow_segment
from ...partition.segment import Segment
from ...quantized_ops import INT8
from ...settings import CompileSettings
from ..contract import Candidate
from .convert import Converted, convert_segment, serialize
from .exact_sums import has_exact_sums
from .keep_precise import keep_precise, kept_nodes
from .layer_table import count_int8, count_weights, layer_table
from .library import import_openvino
from .runtime import ROUND_ACTIVATIONS
from .tune import best_properties


def convert(segment: Segment, candidate: Candidate) -> tuple[Artifact, Converted]:
    """The segment's IR as an artifact, not compiled yet. Raises BuildFailed with OpenVINO's message."""
    narrowed = narrow_segment(segment)
    if narrowed.segment is None:
        raise BuildFailed(f"openvino: {segment.name} computes nothing: every output is an input or a constant")
    converted = convert_segment(narrowed.segment)
    xml, weights = serialize(converted.model)
    tensors: dict[str, torch.Tensor] = dict(narrowed.constants)
    if weights is not None:
        tensors["weights"] = weights
    metadata: dict[str, Any] = {
        "openvino": import_openvino().__version__,
        "precision": precision_name(candidate.precision),
        "call_plan": narrowed.plan.as_json(),
        "properties": {},
        "nodes": {name: node for name, node in converted.nodes.items() if name != node},
    }
    return Artifact(xml, tensors, metadata), converted


def build(segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
    """Convert the segment, then measure which of the plugin's ways of spreading work over threads is fastest for it.

    Raises BuildFailed with OpenVINO's message.
    """
    artifact, converted = convert(segment, candidate)
    metadata = artifact.metadata
    kept = kept_nodes(converted.segment.graph_module, candidate)
    try:
        if kept:
            xml, refused = keep_precise(artifact, kept, converted.nodes, settings.num_threads)
            if refused:
                raise BuildFailed(f"openvino: keep_float32: {segment.name}: {', '.join(sorted(refused))} would not be in float32")
            artifact = replace(artifact, payload=xml)
        may_round = candidate.quantized and candidate.kind != INT8 and torch.int8 in settings.enabled_precisions
        metadata["properties"], compiled = best_properties(artifact, converted.segment.example_inputs, settings.num_threads, may_round=may_round)
    except (RuntimeError, TargetMismatch) as error:
        raise BuildFailed(f"openvino cannot compile {segment.name}: {error}") from error
    metadata["layers"] = layer_table(compiled)
    if candidate.quantized and candidate.kind != INT8:
        metadata["weight_layers"] = count_weights(metadata["layers"])
        metadata["rounds_activations"] = ROUND_ACTIVATIONS[0] in metadata["properties"]
    elif candidate.quantized:
        metadata["int8_layers"] = count_int8(metadata["layers"])
        metadata["exact_sums"] = has_exact_sums()
    return artifact
