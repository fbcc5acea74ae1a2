"""availability: whether ONNX Runtime can build and run here, and in which precisions. Imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from ...dtypes import PRECISIONS, precision_name
from ...settings import CompileSettings
from ...target import Target
from ..contract import Candidate, Reject

_PACKAGES = ("onnxruntime", "onnx", "onnxscript")


def availability(target: Target) -> Reject | None:
    """None on the CPU when the packages of the extra ``onnx`` are installed, else the reason."""
    if target.device_type != "cpu":
        return Reject("onnxruntime", f"runs on the CPU only, not on {target}")
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        return Reject("onnxruntime", f"not installed: {', '.join(missing)}. pip install torchkiln[onnx]")
    return None


def candidates(target: Target, settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
    """One fp32 candidate where fp32 is enabled; a Reject for each narrower precision."""
    found = [Candidate("onnxruntime", torch.float32)] if torch.float32 in settings.enabled_precisions else []
    narrow = [dtype for dtype in PRECISIONS.values() if dtype in settings.enabled_precisions and dtype is not torch.float32]
    reason = "ONNX Runtime's CPU kernels compute in fp32: a narrower type would be cast before and after each operator"
    return found, [Reject(precision_name(dtype), reason) for dtype in narrow]
