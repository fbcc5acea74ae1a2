"""machine: what this machine has that decides how engines are built and run here, as JSON values."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from typing import Any

import torch

from .. import __version__
from ..backends.registry import BACKENDS, get_backend
from ..bench.environment import describe_cpu, describe_gpus
from ..dtypes import PRECISIONS, precision_name
from ..settings import CompileSettings

#: Optional package -> the extra that brings it.
EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "torchvision": "models", "timm": "models", "matplotlib": "report"}


def describe_machine() -> dict[str, Any]:
    """Python, torch, CPU, GPUs, backends (with why one is missing), compilers and optional packages."""
    gpus = describe_gpus()
    devices = [torch.device("cpu"), *([torch.device("cuda", 0)] if gpus else [])]
    return {
        "torchkiln": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()},
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if gpus else None},
        "cpu": {**describe_cpu(), "torch_threads": torch.get_num_threads()},
        "gpus": gpus,
        "backends": [_backend(name, device) for device in devices for name in BACKENDS],
        "tools": {"c++ compiler": _compiler(), "triton": _version("triton"), "nvcc": shutil.which("nvcc")},
        "packages": [{"name": name, "version": _version(name), "extra": extra} for name, extra in EXTRAS.items()],
    }


def _backend(name: str, device: torch.device) -> dict[str, Any]:
    backend = get_backend(name)
    refusal = backend.availability(device)
    row: dict[str, Any] = {"name": name, "device": str(device), "available": refusal is None, "reason": refusal.reason if refusal else ""}
    row |= {"precisions": [], "rejects": []}
    if refusal is None:
        settings = CompileSettings(enabled_precisions=frozenset(PRECISIONS.values()), device=device)
        candidates, rejects = backend.candidates(device, settings)
        precisions = {c.precision for c in candidates}
        row["precisions"] = [precision_name(p) for p in PRECISIONS.values() if p in precisions]
        row["rejects"] = [{"subject": r.subject, "reason": r.reason} for r in rejects]
    return row


def _compiler() -> str | None:
    """The C++ compiler Inductor would use, found as it finds it: ``$CXX``, then the usual names."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++", "cl"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
