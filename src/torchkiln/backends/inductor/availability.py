"""availability: whether AOTInductor can build here: it writes C++ (and Triton) and needs the compilers."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

import torch

from ...target import Target
from ..contract import Reject

_HOW_TO_GET = {"linux": "apt install g++", "darwin": "xcode-select --install", "win32": "Visual Studio's C++ build tools"}


def availability(target: Target) -> Reject | None:
    """None when there is a C++ compiler and, for CUDA, a GPU and Triton. Looks for files; imports and runs nothing."""
    if target.device_type not in ("cpu", "cuda"):
        return Reject("inductor", f"is built for cpu and cuda, not for {target}")
    if target.device_type == "cuda":
        if not target.is_here:
            return Reject("inductor", f"builds for the GPU of the machine it runs on, and {target} is not in this one")
        if torch.version.cuda is None or not torch.cuda.is_available():
            return Reject("inductor", "torch sees no CUDA GPU here: AOTInductor builds for CUDA on a machine with one")
        if find_spec("triton") is None:
            return Reject("inductor", "needs Triton to build for CUDA: pip install triton")
    if find_compiler() is None:
        return Reject("inductor", f"needs a C++ compiler to build: {_HOW_TO_GET.get(sys.platform, 'install g++')}, or name one in CXX")
    return None


def find_compiler() -> str | None:
    """The C++ compiler to use: the one named in CXX, else the platform's usual one (Inductor's own order), else the other."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else {"darwin": ["clang++", "g++"], "win32": ["cl"]}.get(sys.platform, ["g++", "clang++"])
    return next((name for name in names if shutil.which(name)), None)
