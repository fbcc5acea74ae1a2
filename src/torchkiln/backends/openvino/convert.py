"""convert: a segment as an ``openvino.Model`` with the segment's shapes, ranges and output dtypes."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from ...dtypes import dtype_name
from ...errors import BuildFailed
from ...partition.segment import Segment
from .library import import_openvino, without_telemetry
from .quantized import spell_quantized
from .runtime import DTYPES, TYPE_NAMES, last_line


def convert_segment(segment: Segment) -> Any:
    """The segment through OpenVINO's PyTorch frontend. Raises BuildFailed with the frontend's message."""
    ov = import_openvino()
    try:
        program = spell_quantized(segment).export()
        with without_telemetry(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ov.convert_model(program)
            _set_shapes(model, segment)
            return _set_outputs(model, segment)
    except BuildFailed:
        raise
    except Exception as error:  # torch.export and the frontend raise what they like; all of it means that the segment cannot be built
        raise BuildFailed(f"openvino cannot convert {segment.name}: {type(error).__name__}: {last_line(error)}") from error


def _set_shapes(model: Any, segment: Segment) -> None:
    """The frontend leaves every dimension open. Fixed ones make better kernels and bounded ones less memory."""
    ov = import_openvino()
    if len(model.inputs) != len(segment.example_inputs):
        raise BuildFailed(f"openvino: {segment.name}: expected {len(segment.example_inputs)} inputs, the converted model has {len(model.inputs)}")
    shapes = {}
    for index, (port, example, ranges) in enumerate(zip(model.inputs, segment.example_inputs, segment.dim_ranges, strict=True)):
        expected, got = TYPE_NAMES[example.dtype], port.get_element_type().to_string()
        if expected != got:
            raise BuildFailed(f"openvino: {segment.name}: input {index}: expected {expected}, the converted model takes {got}")
        dims = [ov.Dimension(*ranges[d]) if d in ranges else ov.Dimension(size) for d, size in enumerate(example.shape)]
        shapes[port] = ov.PartialShape(dims)
        port.get_tensor().set_names({f"input_{index}"})
    model.reshape(shapes)


def _set_outputs(model: Any, segment: Segment) -> Any:
    """Give each output the dtype that PyTorch gives it. Raises BuildFailed where the kinds differ, for then the values may as well."""
    ov = import_openvino()
    expected = [node.meta["val"].dtype for node in segment.graph_module.graph.output_node().args[0]]  # type: ignore[union-attr]
    if len(model.outputs) != len(expected):
        raise BuildFailed(f"openvino: {segment.name}: expected {len(expected)} outputs, the converted model has {len(model.outputs)}")
    casts: dict[int, str] = {}
    for index, (port, dtype) in enumerate(zip(model.outputs, expected, strict=True)):
        got = DTYPES.get(port.get_element_type().to_string())
        if got is None or _kind(got) != _kind(dtype):
            raise BuildFailed(f"openvino: {segment.name}: output {index}: expected {dtype_name(dtype)}, the converted model gives {port}")
        if got != dtype:
            casts[index] = TYPE_NAMES[dtype]
        port.get_tensor().set_names({f"output_{index}"})
    if not casts:
        return model
    steps = ov.preprocess.PrePostProcessor(model)
    for index, name in casts.items():
        steps.output(index).tensor().set_element_type(getattr(ov.Type, name))
    return steps.build()


def _kind(dtype: torch.dtype) -> str:
    return "bool" if dtype is torch.bool else "float" if dtype.is_floating_point else "integer"


def serialize(model: Any) -> tuple[bytes, torch.Tensor | None]:
    """The model's IR: its XML, and its weights (1-D uint8; None when it has none) exactly as they are, not compressed to fp16."""
    ov = import_openvino()
    with tempfile.TemporaryDirectory(prefix="torchkiln") as folder:
        xml, binary = Path(folder, "segment.xml"), Path(folder, "segment.bin")
        ov.serialize(model, xml, binary)
        size = binary.stat().st_size if binary.exists() else 0
        weights = None
        if size:
            weights = torch.empty(size, dtype=torch.uint8)
            with binary.open("rb") as file:
                file.readinto(memoryview(weights.numpy()))  # type: ignore[arg-type]
        return xml.read_bytes(), weights
