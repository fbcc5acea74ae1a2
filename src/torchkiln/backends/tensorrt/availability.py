"""availability: which GPUs TensorRT can build for here, and in which precisions. Imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from ...dtypes import PRECISIONS, precision_name
from ...settings import CompileSettings
from ...target import Target
from ..contract import Candidate, Reject
from .library import FULL, RTX, RTX_TARGETS, is_installed

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_FIRST_BF16 = (8, 0)


def availability(target: Target) -> Reject | None:
    """None when a library for the target is installed, and what converts and checks a model for it."""
    if target.device_type != "cuda":
        return Reject("tensorrt", f"builds for NVIDIA GPUs, not for {target}: name one, as target='sm_89'")
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        return Reject("tensorrt", f"not installed: {', '.join(missing)}. pip install torchkiln[tensorrt]")
    if target.is_here and is_installed(FULL):
        return None
    if not is_installed(RTX):
        return Reject("tensorrt", "not installed: tensorrt-rtx. pip install torchkiln[tensorrt]")
    if target.name not in RTX_TARGETS:
        return Reject("tensorrt", f"TensorRT-RTX has no kernels for {target}: it has them for {', '.join(RTX_TARGETS)}")
    return None


def candidates(target: Target, settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
    """One candidate for each enabled precision that the GPU computes in, and a Reject for each other."""
    found, rejects = [], []
    for dtype in PRECISIONS.values():
        if dtype not in settings.enabled_precisions:
            continue
        if dtype is torch.bfloat16 and (target.compute_capability or _FIRST_BF16) < _FIRST_BF16:
            rejects.append(Reject(precision_name(dtype), f"{target} has no bf16 arithmetic: it came with sm_80"))
        else:
            found.append(Candidate("tensorrt", dtype))
    return found, rejects
