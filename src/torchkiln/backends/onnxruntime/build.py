"""build: a segment as an ONNX Runtime artifact: the graph as payload, its weights as tensors."""

from __future__ import annotations

from typing import Any

from ...engine.artifact import Artifact
from ...errors import BuildFailed, TargetMismatch
from ...log import STEPS, log
from ...partition.narrow_segment import narrow_segment
from ...partition.segment import Segment
from ...settings import CompileSettings
from ..choose_fastest import choose_fastest
from ..contract import Candidate
from .convert import convert_segment
from .library import import_onnxruntime
from .runtime import Session


def build(segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
    """Export the segment, then measure whether spinning threads are worth it. Raises BuildFailed with the exporter's or the library's message."""
    narrowed = narrow_segment(segment)
    if narrowed.segment is None:
        raise BuildFailed(f"onnxruntime: {segment.name} computes nothing: every output is an input or a constant")
    graph, weights = convert_segment(narrowed.segment)
    metadata: dict[str, Any] = {
        "onnxruntime": import_onnxruntime().__version__,
        "precision": "fp32",
        "call_plan": narrowed.plan.as_json(),
        "spin": False,
    }
    artifact = Artifact(graph, {**weights, **narrowed.constants}, metadata)
    try:
        sessions = [Session(artifact, settings.num_threads, spin=spin) for spin in (False, True)]
        winner, times_us = choose_fastest(sessions, narrowed.segment.example_inputs)
    except (RuntimeError, TargetMismatch, KeyError) as error:
        raise BuildFailed(f"onnxruntime cannot run {segment.name}: {error}") from error
    log(STEPS, "onnxruntime: threads that block %.0f us, that spin %.0f us", *times_us)
    metadata["spin"] = winner == 1
    return artifact
