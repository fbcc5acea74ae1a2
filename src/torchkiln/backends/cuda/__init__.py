"""cuda: torchkiln's own engine for NVIDIA GPUs: fused operators, tactics chosen by measuring, one memory plan, one CUDA graph."""

from __future__ import annotations

from ..lazy_backend import LazyBackend

BACKEND = LazyBackend("cuda", __name__, availability="availability", candidates="availability", no_int8="")
