"""inductor: AOTInductor packages, weights folded and packed, for the CPU and for CUDA, and the way to run an engine from C++ without Python."""

from __future__ import annotations

from ..lazy_backend import LazyBackend

BACKEND = LazyBackend(
    "inductor",
    __name__,
    availability="availability",
    candidates="precision",
    no_int8="",
    no_weight_only="it makes weights floating again when it builds: the engine would be as large and as fast as without",
)
