"""The table of backends, in the order ``auto`` considers them. Each is imported only when it is asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from ..errors import UserError
from .contract import Backend

#: Name -> package that holds ``BACKEND``.
BACKENDS: dict[str, str] = {
    "openvino": "torchkiln.backends.openvino",
    "onnxruntime": "torchkiln.backends.onnxruntime",
    "cuda": "torchkiln.backends.cuda",
    "inductor": "torchkiln.backends.inductor",
    "tensorrt": "torchkiln.backends.tensorrt",
    "torch": "torchkiln.backends.torch_fallback",
}


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name. Raises UserError for an unknown one."""
    if name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    return import_module(BACKENDS[name]).BACKEND
