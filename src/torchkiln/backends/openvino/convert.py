"""convert: a segment as an ``openvino.Model`` with the segment's shapes, ranges and output dtypes."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import Graph

from ...dtypes import dtype_name
from ...errors import BuildFailed
from ...partition.segment import Segment
from ..quiet_logging import quiet_logging
from .fold_shapes import fold_shapes
from .library import import_openvino, without_telemetry
from .pack_int4 import pack_int4
from .quantized import spell_quantized
from .runtime import DTYPES, TYPE_NAMES, last_line

#: Where a node's name in the segment is kept while torch.export and the frontend rename it: they hand ``meta["custom"]`` on.
_ORIGIN = "torchkiln_node"


@dataclass
class Converted:
    """A segment as an ``openvino.Model``.

    Attributes:
        segment: what was converted.
        nodes: name of a node as the frontend has it (the part of a layer's name before the first "/") -> name of the node in the segment.
    """

    model: Any
    segment: Segment
    nodes: dict[str, str]


def convert_segment(segment: Segment) -> Converted:
    """The segment through OpenVINO's PyTorch frontend. Raises BuildFailed with the frontend's message."""
    ov = import_openvino()
    try:
        spelled = spell_quantized(segment)
        for node in spelled.graph_module.graph.nodes:
            node.meta["custom"] = {**(node.meta.get("custom") or {}), _ORIGIN: node.name}
        program = spelled.export()
        with without_telemetry(), warnings.catch_warnings(), quiet_logging():
            warnings.simplefilter("ignore")
            from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

            decoder = TorchFXPythonDecoder.from_exported_program(program)  # what convert_model does with a program; it tells the names
            model = ov.convert_model(decoder)
            pack_int4(model)
            _set_shapes(model, segment)
            fold_shapes(model)
            return Converted(_set_outputs(model, segment), segment, _origins(decoder.pt_module.graph))
    except BuildFailed:
        raise
    except Exception as error:  # torch.export and the frontend raise what they like; all of it means that the segment cannot be built
        raise BuildFailed(f"openvino cannot convert {segment.name}: {type(error).__name__}: {last_line(error)}") from error


def _origins(graph: Graph) -> dict[str, str]:
    origins = {node.name: (node.meta.get("custom") or {}).get(_ORIGIN) for node in graph.nodes}
    return {name: origin for name, origin in origins.items() if isinstance(origin, str)}


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
