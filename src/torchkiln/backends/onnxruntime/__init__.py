"""onnxruntime: an ONNX graph on ONNX Runtime's CPU provider, in fp32. On convolution networks it is the fastest fp32 on some CPUs."""

from __future__ import annotations

from ..lazy_backend import LazyBackend

BACKEND = LazyBackend("onnxruntime", __name__, availability="availability", candidates="availability")
