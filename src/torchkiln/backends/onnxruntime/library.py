"""The one place that imports onnxruntime, and the one that imports onnx_ir (which comes with onnxscript)."""

from __future__ import annotations

from typing import Any

from ...errors import MissingPackage


def import_onnxruntime() -> Any:
    """The onnxruntime module. Raises MissingPackage."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingPackage(f"running this segment needs the package onnxruntime ({error}): pip install torchkiln[onnx]") from error
    return onnxruntime


def import_onnx_ir() -> Any:
    """The onnx_ir module, in which torch's exporter gives its graphs. Raises MissingPackage."""
    try:
        import onnx  # noqa: F401  # torch's exporter imports these two without saying which extra brings them
        import onnx_ir
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackage(f"building for onnxruntime needs the packages onnx and onnxscript ({error}): pip install torchkiln[onnx]") from error
    return onnx_ir
