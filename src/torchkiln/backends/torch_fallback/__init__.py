"""torch_fallback: PyTorch itself, operator by operator, for whatever no other backend takes."""

from __future__ import annotations

from ..lazy_backend import LazyBackend

BACKEND = LazyBackend("torch", __name__, availability="support", candidates="support", no_int8="", no_weight_only="")
