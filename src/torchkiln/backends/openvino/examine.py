"""examine: which nodes cannot stay in float32 while the plugin computes the rest in a low precision: PyTorch computes them."""

from __future__ import annotations

from torch.fx import Node

from ...dtypes import precision_name
from ...errors import BuildFailed, TargetMismatch
from ...partition.segment import Segment
from ...settings import CompileSettings, op_name
from ..contract import Candidate, Reject
from .build import convert
from .keep_precise import keep_precise, kept_nodes


def examine(segment: Segment, candidate: Candidate, settings: CompileSettings) -> dict[Node, Reject]:
    """A Reject for each kept node that OpenVINO would narrow. Converts and compiles the segment, where nodes are kept, to see it."""
    kept = kept_nodes(segment.graph_module, candidate)
    if not kept:
        return {}
    try:
        artifact, converted = convert(segment, candidate)
        _, refused = keep_precise(artifact, kept, converted.nodes, settings.num_threads)
    except (BuildFailed, TargetMismatch, RuntimeError):
        return {}  # the build will say it
    reason = f"keep_float32: OpenVINO computes it in {precision_name(candidate.precision)} with all else"
    return {node: Reject(op_name(node.target), reason) for node in segment.graph_module.graph.nodes if node.name in refused}
