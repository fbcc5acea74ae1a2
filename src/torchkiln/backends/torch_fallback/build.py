"""Build for the fallback: the segment's graph as JSON and its tensors."""

from __future__ import annotations

import torch

from ...engine.artifact import Artifact
from ...engine.graph_json import encode_graph
from ...engine.strict_json import dump_json
from ...errors import BuildFailed, UserError
from ...partition.segment import Segment
from ...settings import CompileSettings
from ..contract import Candidate


def build(segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
    """The artifact of the segment's graph. Raises BuildFailed naming the node that a file cannot hold."""
    graph = segment.graph_module.graph
    try:
        encoded, tensors = encode_graph(segment.graph_module, _device_of(segment, candidate, settings))
    except UserError as error:
        raise BuildFailed(f"{segment.name}: torch: {error}") from error
    output = graph.output_node().args[0]
    return Artifact(
        payload=dump_json(encoded, f"{segment.name}: graph"),
        # Copied, so that training the source model on, or freeing it, leaves the engine alone.
        tensors={name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        metadata={
            "torch": torch.__version__,
            "input_count": len(graph.find_nodes(op="placeholder")),
            "output_count": len(output),  # type: ignore[arg-type]
        },
    )


def _device_of(segment: Segment, candidate: Candidate, settings: CompileSettings) -> torch.device:
    """The device the build works on, which the graph names: where the example inputs are; for a segment without tensors, the target's, and the CPU
    for a target that is not in this machine."""
    for tensor in (*segment.example_inputs, *segment.graph_module.parameters(), *segment.graph_module.buffers()):
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
            return tensor.device
    if candidate.targets:
        return candidate.targets[0].device or torch.device("cpu")
    return torch.device(settings.device or "cpu")
