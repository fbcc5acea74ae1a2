"""precision: what OpenVINO's CPU plugin really computes in on this machine.

The plugin accepts any INFERENCE_PRECISION_HINT and quietly computes in another precision where the CPU lacks the arithmetic: fp16 becomes
bf16 or fp32, bf16 becomes fp32 or, worse, is emulated. What it chose can be read back from a compiled model.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from ...dtypes import PRECISIONS, precision_name
from ...settings import CompileSettings
from ...target import Target
from ..contract import Candidate, Reject
from .library import core, import_openvino

#: Compute precision -> OpenVINO's name of the type.
OPENVINO_TYPES: dict[torch.dtype, str] = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_TORCH_TYPES = {name: dtype for dtype, name in OPENVINO_TYPES.items()}
#: What OPTIMIZATION_CAPABILITIES calls the arithmetic of each narrow precision.
_CAPABILITIES = {torch.bfloat16: "BF16", torch.float16: "FP16"}


def candidates(target: Target, settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
    """One candidate for each enabled precision that this CPU has, and a Reject for each other."""
    found, rejects = [], []
    for dtype in PRECISIONS.values():
        if dtype in settings.enabled_precisions:
            reject = reject_precision(dtype)
            if reject is None:
                found.append(Candidate("openvino", dtype))
            else:
                rejects.append(reject)
    return found, rejects


def reject_precision(dtype: torch.dtype) -> Reject | None:
    """None when asking OpenVINO for ``dtype`` on this CPU gives ``dtype``."""
    name = precision_name(dtype)
    real = computed_precision(dtype)
    if real != name:
        return Reject(name, f"OpenVINO on this CPU computes {name} as {real}")
    if dtype in _CAPABILITIES and _CAPABILITIES[dtype] not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return Reject(name, f"this CPU has no {name} arithmetic: OpenVINO would emulate it, slower than fp32")
    return None


@cache
def computed_precision(dtype: torch.dtype) -> str:
    """The short name of the precision OpenVINO computes in when asked for ``dtype``: read back from a compiled model of one relu."""
    ov = import_openvino()
    from openvino import opset13 as ops

    parameter = ops.parameter([1, 8], np.float32)
    model = ov.Model([ops.relu(parameter)], [parameter])
    return read_precision(core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": OPENVINO_TYPES[dtype]}))


def read_precision(compiled: object) -> str:
    """The short name of the precision that a compiled model computes in."""
    name = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()  # type: ignore[attr-defined]
    return precision_name(_TORCH_TYPES[name]) if name in _TORCH_TYPES else str(name)
