"""availability: whether OpenVINO can run here. Imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec

from ...target import Target
from ..contract import Reject


def availability(target: Target) -> Reject | None:
    """None on the CPU when the package openvino is installed, else the reason."""
    if target.device_type != "cpu":
        return Reject("openvino", f"runs on the CPU only, not on {target}")
    if find_spec("openvino") is None:
        return Reject("openvino", "the package openvino is not installed: pip install openvino (it has wheels for Linux, macOS arm64 and Windows)")
    return None
