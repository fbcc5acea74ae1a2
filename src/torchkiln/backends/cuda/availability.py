"""availability, candidates: whether the CUDA backend can build here, and in which precisions."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from ...settings import CompileSettings
from ...target import Target
from ..contract import Candidate, Reject

#: Compute capability from which the kernels are built: the first with bfloat16 matrix instructions and asynchronous copies.
MIN_CAPABILITY = (8, 0)


def availability(target: Target) -> Reject | None:
    """None when there is a GPU of compute capability 8.0 or more and Triton."""
    if target.device_type != "cuda":
        return Reject("cuda", f"is built for NVIDIA GPUs, not for {target}")
    if not target.is_here:
        return Reject("cuda", f"measures its kernels on the GPU it builds for, and {target} is not in this machine")
    if torch.version.cuda is None or not torch.cuda.is_available():
        return Reject("cuda", "torch sees no CUDA GPU here")
    if find_spec("triton") is None:
        return Reject("cuda", "needs Triton to build (not to run): pip install triton")
    capability = torch.cuda.get_device_capability(target.device)
    if capability < MIN_CAPABILITY:
        return Reject("cuda", f"needs compute capability 8.0 or more, this GPU has {capability[0]}.{capability[1]}")
    return None


def candidates(target: Target, settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
    """One for each enabled precision: fp16, bf16 and fp32 all run on every GPU that is supported."""
    return [Candidate("cuda", precision) for precision in settings.enabled_precisions], []
