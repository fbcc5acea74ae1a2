"""tensorrt: plans of TensorRT and TensorRT-RTX, by way of ONNX. TensorRT-RTX builds for GPUs that this machine does not have."""

from __future__ import annotations

from ..lazy_backend import LazyBackend

BACKEND = LazyBackend("tensorrt", __name__, availability="availability", candidates="availability", examine="examine", no_int8="")
