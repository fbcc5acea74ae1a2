"""openvino: the default backend of the CPU: OpenVINO's own PyTorch frontend, IR and CPU plugin, in fp32, bf16 or fp16 where the CPU has them."""

from __future__ import annotations

from ..lazy_backend import LazyBackend

BACKEND = LazyBackend(
    "openvino",
    __name__,
    availability="availability",
    candidates="precision",
    examine="examine",
    layer_times="layer_times",
    no_int8="",
    no_weight_only="",
)
