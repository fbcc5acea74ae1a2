"""versions: what this engine was built with, for reports and files."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torchkiln", "torch", "openvino", "onnxruntime", "onnx", "triton", "tensorrt", "tensorrt-rtx")


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def library_versions() -> dict[str, str]:
    """Name -> version of Python and of each installed library that can matter to an engine."""
    return dict(_versions())
