"""convert: a segment as an ONNX graph without its weights, and the weights as tensors."""

from __future__ import annotations

import torch

from ...errors import BuildFailed
from ...partition.segment import Segment
from ..onnx_export import export_onnx, first_line, import_onnx_ir, take_weights


def convert_segment(segment: Segment) -> tuple[bytes, dict[str, torch.Tensor]]:
    """The segment through torch's ONNX exporter: the graph (ONNX protobuf) and the weights it names. Raises BuildFailed.

    The weights stay out of the protobuf, which can hold at most 2 GB. No file is written.
    """
    import_onnx_ir()
    try:
        program = export_onnx(segment.export())
    except Exception as error:  # torch.export and the exporter raise what they like; all of it means that the segment cannot be built
        raise BuildFailed(f"torch.onnx cannot export {segment.name}: {type(error).__name__}: {first_line(error)}") from error
    weights = take_weights(program.model)
    return program.model_proto.SerializeToString(), weights
