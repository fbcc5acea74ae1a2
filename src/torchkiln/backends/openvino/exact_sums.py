"""exact_sums: whether this CPU adds products of 8-bit integers without loss."""

from __future__ import annotations

import platform

import torch


def has_exact_sums() -> bool:
    """Whether OpenVINO's int8 kernels are exact on this CPU.

    On x86 without VNNI and AMX, two neighbouring products of an unsigned and a signed integer are added in 16 bits, and saturate.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # came with torch 2.12
    if get_capabilities is not None:
        found = get_capabilities()
        return any(found.get(name) is True for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return any(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("vnni", "amx_tile"))
