"""describe_environment: the machine, the libraries and the state a benchmark ran in."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__

#: The packages whose versions decide the figures.
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "openvino", "onnxruntime", "onnxruntime-gpu", "onnx", "onnxscript", "triton")
#: The instruction sets that decide which kernels run.
_ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16")
_ARM_FLAGS = ("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2")


def describe_environment(device: torch.device, num_threads: int) -> dict[str, Any]:
    """JSON values: cpu, gpus, threads, versions, commit, date, load average. Values that cannot be found are None."""
    return {
        "cpu": describe_cpu(),
        "gpus": describe_gpus() if device.type == "cuda" else [],
        "num_threads": num_threads,
        "memory_bytes": _memory_bytes(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torchkiln": __version__,
        "commit": _commit(),
        "versions": _versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def command_line() -> str:
    """The command as typed, but for folders of this machine: the program without its own, paths below the current one relative to it."""
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    here = f"{Path.cwd()}/"
    return shlex.join(["torchkiln" if name == "__main__.py" else name, *(argument.replace(here, "") for argument in arguments)])


def describe_cpu() -> dict[str, Any]:
    """Model, cores and the instruction sets that matter for inference."""
    fields = _cpuinfo()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "logical_cores": os.cpu_count(),
        "usable_cores": usable,
        "isa": [flag for flag in (*_ISA_FLAGS, *_ARM_FLAGS) if flag in flags],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


def describe_gpus() -> list[dict[str, Any]]:
    """Name, compute capability, memory and driver of each CUDA device; empty without CUDA."""
    if not torch.cuda.is_available():
        return []
    driver = (_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "").splitlines()
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "driver": driver[0] if driver else None,
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        )
    return gpus


def _cpuinfo() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n", 1)[0]
    return {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in first.splitlines()) if colon}


def _memory_bytes() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the checkout torchkiln runs from, with "+changes" when tracked files differ from it; None when installed."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no") else "")


def _output(*command: str) -> str | None:
    """What a small program prints; None when it is not here or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
