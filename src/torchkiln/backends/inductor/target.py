"""target: what a package was built for, and whether this machine is that."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch

from ...errors import TargetMismatch

_REBUILD = "Build the engine again on this machine."


def describe_target(device: torch.device) -> dict[str, Any]:
    """What a package built here for ``device`` needs where it is loaded, as JSON values."""
    target: dict[str, Any] = {
        "device": device.type,
        "torch": _minor(torch.__version__),
        "platform": sys.platform,
        "machine": platform.machine(),
        "cpu_features": cpu_features(),
    }
    if device.type == "cuda":
        target["cuda"] = torch.version.cuda
        target["compute_capability"] = compute_capability(device)
    return target


def check_target(target: Mapping[str, Any], device: torch.device) -> None:
    """Raises TargetMismatch, saying what differs, when a package built for ``target`` cannot run here on ``device``.

    Generated code calls libtorch functions that change from one minor version of torch to the next, and uses every instruction the building
    CPU has; kernels for a GPU are machine code of its compute capability.
    """
    here = describe_target(device)
    for key, what in _WHAT.items():
        if key in here and target.get(key) != here[key]:
            raise TargetMismatch(f"inductor package: built for {what} {target.get(key)}, this is {here[key]}. {_REBUILD}")
    missing = sorted(set(map(str, target.get("cpu_features") or [])) - set(here["cpu_features"]))
    if missing:
        raise TargetMismatch(f"inductor package: built for a CPU with {', '.join(missing)}, which this CPU lacks. {_REBUILD}")


_WHAT = {
    "device": "device",
    "torch": "torch",
    "platform": "platform",
    "machine": "processor type",
    "cuda": "CUDA",
    "compute_capability": "compute capability",
}


def cpu_features() -> list[str]:
    """The instruction sets of this CPU as torch names them."""
    # torch.cpu.get_capabilities came with torch 2.12. Names need only agree within one torch version: others are refused anyway.
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if get_capabilities is not None:
        found = dict(get_capabilities())
        lengths = [f"{name}={value}" for name, value in found.items() if name.endswith("max_length") and value]
        return sorted([name for name, value in found.items() if value is True] + lengths)
    probes = ("avx2", "avx512", "avx512_bf16", "vnni", "amx_tile", "amx_fp16")
    return [name for name in probes if getattr(torch.cpu, f"_is_{name}_supported", lambda: False)()]


def compute_capability(device: torch.device) -> str:
    """ "9.0" of an H200."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def _minor(version: str) -> str:
    """ "2.14.1+cu130" -> "2.14"."""
    return ".".join(version.split("+")[0].split(".")[:2])
