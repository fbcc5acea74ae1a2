"""The one place that imports TensorRT: TensorRT-RTX from the package index, a full TensorRT 10 or 11 where one is installed, its lean runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ...errors import MissingPackage
from ...target import Target

RTX = "tensorrt_rtx"
FULL = "tensorrt"
LEAN = "tensorrt_lean"

#: The GPUs that TensorRT-RTX has kernels for.
RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
#: The oldest full TensorRT whose plans are run, and the oldest whose parser takes weights from memory, which building needs.
_OLDEST_FULL = (10, 0)
_OLDEST_BUILDER = (10, 13)
_INSTALL = "pip install torchkiln[tensorrt]"


@dataclass(frozen=True)
class Library:
    """One of the libraries, imported.

    Attributes:
        flavor: "tensorrt_rtx", "tensorrt" or "tensorrt_lean".
        module: its Python module; the three have the same calls.
        version: as the library says it.
    """

    flavor: str
    module: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        return self.flavor == RTX


def import_builder(targets: Iterable[Target]) -> Library:
    """The library that builds for ``targets``: a full TensorRT where the GPU is in this machine and one is installed, else TensorRT-RTX.

    Raises MissingPackage when neither is there, or TensorRT-RTX alone, which has no kernels for some of them.
    """
    targets = tuple(targets)
    full = _import(FULL) if all(target.is_here for target in targets) else None
    if full is not None and hasattr(full.module, "Builder") and _number(full.version) >= _OLDEST_BUILDER:
        return full
    found = _import(RTX)
    if found is None:
        raise MissingPackage(f"building for the backend tensorrt needs the package tensorrt-rtx: {_INSTALL}")
    others = [target.name for target in targets if target.name not in RTX_TARGETS]
    if others:
        why = (
            f"the package tensorrt {full.version} has no builder that can be used (10.13 and later have)"
            if full
            else "no usable TensorRT is installed"
        )
        raise MissingPackage(
            f"TensorRT-RTX has no kernels for {', '.join(others)} (it has them for {', '.join(RTX_TARGETS)}), and {why}: "
            "install TensorRT 10.13 or later from NVIDIA on a machine with that GPU"
        )
    return found


def import_runtime(flavor: str, *, version_compatible: bool = False) -> Library:
    """The library that runs a plan which ``flavor`` built. A version-compatible plan runs on the lean runtime where the full library is missing.

    Raises MissingPackage.
    """
    found = _import(flavor) or (_import(LEAN) if version_compatible and flavor == FULL else None)
    if found is None:
        package = {RTX: f"tensorrt-rtx ({_INSTALL})", FULL: "tensorrt 10 or 11 (from NVIDIA)"}.get(flavor, flavor)
        raise MissingPackage(f"this engine was built by {flavor}, and running it needs the package {package}")
    return found


def is_installed(flavor: str) -> bool:
    """Whether the package is there, without importing it."""
    return find_spec(flavor) is not None


@cache
def _import(flavor: str) -> Library | None:
    """The library, or None where it is missing or, as the stub packages of the index do, has no native libraries to load."""
    if not is_installed(flavor):
        return None
    try:
        module = import_module(flavor)
    except (ImportError, OSError):  # OSError: its shared libraries are missing
        return None
    version = str(getattr(module, "__version__", ""))
    if not hasattr(module, "Runtime") or (flavor != RTX and _number(version) < _OLDEST_FULL):
        return None
    return Library(flavor, module, version)


def _number(version: str) -> tuple[int, int]:
    """The first two parts of a version, as numbers."""
    parts = [int(part) if part.isdigit() else 0 for part in version.split(".")[:2]]
    return (*parts, 0, 0)[:2]  # type: ignore[return-value]
