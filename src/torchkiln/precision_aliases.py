"""precision_aliases: ``torchkiln.dtype.half`` and the like, so that code written for ``torch_tensorrt.dtype`` runs."""

from __future__ import annotations

import torch


class dtype:
    """Names of torch_tensorrt.dtype for torch's own dtypes."""

    float = f32 = float32 = torch.float32
    half = f16 = float16 = torch.float16
    bfloat16 = bf16 = torch.bfloat16
    double = f64 = float64 = torch.float64
    int8 = i8 = torch.int8
    int32 = i32 = torch.int32
    int64 = i64 = long = torch.int64
    bool = b = torch.bool
