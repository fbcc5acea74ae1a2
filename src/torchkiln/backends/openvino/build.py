"""build: a segment as an OpenVINO artifact: the IR's XML as payload, its weights as one tensor."""

from __future__ import annotations

from typing import Any

import torch

from ...dtypes import precision_name
from ...engine.artifact import Artifact
from ...errors import BuildFailed, TargetMismatch
from ...partition.narrow_segment import narrow_segment
from ...partition.segment import Segment
from ...settings import CompileSettings
from ..contract import Candidate
from .convert import convert_segment, serialize
from .exact_sums import has_exact_sums
from .layer_table import count_int8, layer_table
from .library import import_openvino
from .tune import best_properties


def build(segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
    """Convert the segment, then measure which of the plugin's ways of spreading work over threads is fastest for it.

    Raises BuildFailed with OpenVINO's message.
    """
    narrowed = narrow_segment(segment)
    if narrowed.segment is None:
        raise BuildFailed(f"openvino: {segment.name} computes nothing: every output is an input or a constant")
    xml, weights = serialize(convert_segment(narrowed.segment))
    tensors: dict[str, torch.Tensor] = dict(narrowed.constants)
    if weights is not None:
        tensors["weights"] = weights
    metadata: dict[str, Any] = {
        "openvino": import_openvino().__version__,
        "precision": precision_name(candidate.precision),
        "call_plan": narrowed.plan.as_json(),
        "properties": {},
    }
    artifact = Artifact(xml, tensors, metadata)
    try:
        metadata["properties"], compiled = best_properties(artifact, narrowed.segment.example_inputs, settings.num_threads)
    except (RuntimeError, TargetMismatch) as error:
        raise BuildFailed(f"openvino cannot compile {segment.name}: {error}") from error
    metadata["layers"] = layer_table(compiled)
    if candidate.quantized:
        metadata["int8_layers"] = count_int8(metadata["layers"])
        metadata["exact_sums"] = has_exact_sums()
    return artifact
