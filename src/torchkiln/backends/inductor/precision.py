"""precision: the compute precisions that pay on a device, and why the others do not."""

from __future__ import annotations

import torch

from ...dtypes import PRECISIONS, precision_name
from ...settings import CompileSettings
from ...target import Target
from ..contract import Candidate, Reject


def candidates(target: Target, settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
    """One candidate for each enabled precision that the target computes in, and a Reject for each other."""
    device = target.device or torch.device(target.device_type)
    found, rejects = [], []
    for dtype in PRECISIONS.values():
        if dtype not in settings.enabled_precisions:
            continue
        reason = _reason_against(dtype, device)
        if reason:
            rejects.append(Reject(precision_name(dtype), reason))
        else:
            found.append(Candidate("inductor", dtype))
    return found, rejects


def _reason_against(dtype: torch.dtype, device: torch.device) -> str:
    if dtype is torch.float32:
        return ""
    name = precision_name(dtype)
    if device.type == "cuda":
        if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
            return f"this GPU has no {name} arithmetic (it came with compute capability 8.0)"
        return ""
    # oneDNN's kernels are what makes a narrow precision fast on a CPU; without them every operator would be emulated through fp32.
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    if not torch.backends.mkldnn.is_available():
        return f"this build of torch has no oneDNN, which has the {name} kernels"
    if not getattr(torch.ops.mkldnn, supported)():
        return f"this CPU has no {name} arithmetic: oneDNN would emulate it, slower than fp32"
    return ""
