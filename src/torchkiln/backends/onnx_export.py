"""onnx_export: an ExportedProgram through torch's ONNX exporter, and the weights taken out of the graph. No file is written."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import MissingPackage
from .quiet_logging import quiet_logging

#: Smaller tensors stay in the graph: libraries read shapes, axes and scalars while they optimize.
_SMALL_BYTES = 1024
WEIGHT_PREFIX = "weight_"


def import_onnx_ir() -> Any:
    """The onnx_ir module, in which torch's exporter gives its graphs. Raises MissingPackage."""
    try:
        import onnx  # noqa: F401  # torch's exporter imports these two without saying which extra brings them
        import onnx_ir
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackage(f"converting a model to ONNX needs the packages onnx and onnxscript ({error}): pip install torchkiln[onnx]") from error
    return onnx_ir


def export_onnx(program: ExportedProgram, *, optimize: bool = True, opset: int | None = None) -> Any:
    """``torch.onnx.export(dynamo=True)`` without its prints, progress marks and warnings. ``opset``: None for the exporter's own choice."""
    with quiet_logging(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(program, (), dynamo=True, optimize=optimize, opset_version=opset, verbose=False)
    assert exported is not None
    return exported


def take_weights(model: Any, *, small_too: bool = False) -> dict[str, torch.Tensor]:
    """Replace each large initializer by a reference to an external one of the name ``weight_N``; the tensors by that name.

    ``small_too``: floating ones of two elements and more as well, save those that libraries read as sizes.
    """
    ir = import_onnx_ir()
    weights: dict[str, torch.Tensor] = {}
    for value in list(model.graph.initializers.values()):
        constant = value.const_value
        if constant is None:
            continue
        is_small_weight = small_too and constant.dtype.is_floating_point() and constant.size > 1 and not _is_read_as_size(value)
        if constant.nbytes < _SMALL_BYTES and not is_small_weight:
            continue
        name = f"{WEIGHT_PREFIX}{len(weights)}"
        weights[name] = _tensor(constant)
        value.name = name
        value.const_value = ir.ExternalTensor(
            location="weights", offset=0, length=constant.nbytes, dtype=constant.dtype, shape=constant.shape, name=name
        )
    return weights


def _is_read_as_size(value: Any) -> bool:
    return any(node.op_type == "Resize" for node in value.consumers())


def _tensor(constant: Any) -> torch.Tensor:
    """A copy: the exporter gives the model's own parameters, which its owner may change."""
    raw = getattr(constant, "raw", None)
    if isinstance(raw, torch.Tensor):
        return raw.detach().cpu().clone(memory_format=torch.contiguous_format)
    array = constant.numpy()
    if str(array.dtype) == "bfloat16":  # a numpy extension type that torch does not know
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def first_line(error: BaseException) -> str:
    """The first line that says something of an exporter's long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
