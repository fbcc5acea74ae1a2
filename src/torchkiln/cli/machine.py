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
from ..target import Target, parse_target

#: GPUs that are asked about where they are not in this machine: one of each generation.
ABSENT_GPUS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")

#: Optional package -> the extra that brings it.
EXTRAS = {
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "tensorrt_rtx": "tensorrt",
    "torchvision": "models",
    "timm": "models",
    "matplotlib": "report",
}


def describe_machine() -> dict[str, Any]:
    """Python, torch, CPU, GPUs, backends (with why one is missing), compilers and optional packages."""
    gpus = describe_gpus()
    targets = [Target.of(torch.device("cpu")), *([Target.of(torch.device("cuda", 0))] if gpus else [])]
    return {
        "torchkiln": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()},
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if gpus else None},
        "cpu": {**describe_cpu(), "torch_threads": torch.get_num_threads()},
        "gpus": gpus,
        "backends": [_backend(name, target) for target in targets for name in BACKENDS],
        "absent_targets": _absent_targets(),
        "tools": {"c++ compiler": _compiler(), "triton": _version("triton"), "nvcc": shutil.which("nvcc")},
        "packages": [{"name": name, "version": _version(name), "extra": extra} for name, extra in EXTRAS.items()],
    }


def _backend(name: str, target: Target) -> dict[str, Any]:
    backend = get_backend(name)
    refusal = backend.availability(target)
    device = str(target.device)
    row: dict[str, Any] = {"name": name, "device": device, "available": refusal is None, "reason": refusal.reason if refusal else ""}
    row |= {"precisions": [], "rejects": []}
    if refusal is None:
        settings = CompileSettings(enabled_precisions=frozenset(PRECISIONS.values()))
        candidates, rejects = backend.candidates(target, settings)
        precisions = {c.precision for c in candidates}
        row["precisions"] = [precision_name(p) for p in PRECISIONS.values() if p in precisions]
        row["rejects"] = [{"subject": r.subject, "reason": r.reason} for r in rejects]
    return row


def _absent_targets() -> list[dict[str, Any]]:
    """For each GPU that a backend can build for without having it: the backend; or why none can."""
    rows = []
    for name in ABSENT_GPUS:
        target = parse_target(name)
        if target.is_here:
            continue
        refusals = {backend: get_backend(backend).availability(target) for backend in BACKENDS}
        able = [backend for backend, refusal in refusals.items() if refusal is None]
        refusal = refusals["tensorrt"]
        rows.append({"target": name, "backends": able, "reason": "" if able or refusal is None else refusal.reason})
    return rows


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
