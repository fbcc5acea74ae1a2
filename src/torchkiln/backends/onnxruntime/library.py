"""The one place that imports onnxruntime."""

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
