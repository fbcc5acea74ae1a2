"""convert: a segment as an ONNX graph without its weights, and the weights as tensors."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
from torch.export import ExportedProgram

from ...errors import BuildFailed
from ...partition.segment import Segment
from ..quiet_logging import quiet_logging
from .library import import_onnx_ir
from .runtime import WEIGHT_PREFIX

#: Smaller tensors stay in the graph: ONNX Runtime reads shapes, axes and scalars while it optimizes.
_SMALL_BYTES = 1024


def convert_segment(segment: Segment) -> tuple[bytes, dict[str, torch.Tensor]]:
    """The segment through torch's ONNX exporter: the graph (ONNX protobuf) and the weights it names. Raises BuildFailed.

    The weights stay out of the protobuf, which can hold at most 2 GB. No file is written.
    """
    import_onnx_ir()
    try:
        program = export_onnx(segment.export())
    except Exception as error:  # torch.export and the exporter raise what they like; all of it means that the segment cannot be built
        raise BuildFailed(f"torch.onnx cannot export {segment.name}: {type(error).__name__}: {first_line(error)}") from error
    weights = _take_weights(program.model)
    return program.model_proto.SerializeToString(), weights


def export_onnx(program: ExportedProgram, *, optimize: bool = True) -> Any:
    """``torch.onnx.export(dynamo=True)`` without its prints, progress marks and warnings."""
    with quiet_logging(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(program, (), dynamo=True, optimize=optimize, verbose=False)
    assert exported is not None
    return exported


def _take_weights(model: Any) -> dict[str, torch.Tensor]:
    """Replace each large initializer by a reference to an external one of the name ``weight_N``; the tensors by that name."""
    ir = import_onnx_ir()
    weights: dict[str, torch.Tensor] = {}
    for value in list(model.graph.initializers.values()):
        constant = value.const_value
        if constant is None or constant.nbytes < _SMALL_BYTES:
            continue
        name = f"{WEIGHT_PREFIX}{len(weights)}"
        weights[name] = _tensor(constant)
        value.name = name
        value.const_value = ir.ExternalTensor(
            location="weights", offset=0, length=constant.nbytes, dtype=constant.dtype, shape=constant.shape, name=name
        )
    return weights


def _tensor(constant: Any) -> torch.Tensor:
    """A copy: the exporter gives the model's own parameters, which its owner may change."""
    raw = getattr(constant, "raw", None)
    if isinstance(raw, torch.Tensor):
        return raw.detach().clone(memory_format=torch.contiguous_format)
    array = constant.numpy()
    if str(array.dtype) == "bfloat16":  # a numpy extension type that torch does not know
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def first_line(error: BaseException) -> str:
    """The first line that says something of an exporter's long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
