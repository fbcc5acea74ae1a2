"""data_types: TensorRT's names of data types -> torch's dtypes, for tensors that go in and out and for weights."""

from __future__ import annotations

from typing import Any

import torch

#: TensorRT also has INT4, FP4 and E8M0, which torch packs differently; none of them is an input, an output or a named weight here.
DATA_TYPES: dict[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


#: The names in an artifact's metadata: short for what an engine computes in.
_SHORT_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8"}


def short_name(dtype: torch.dtype) -> str:
    """``torch.float16`` -> "fp16"; ``torch.int64`` -> "int64"."""
    return _SHORT_NAMES.get(dtype) or str(dtype).removeprefix("torch.")


def data_type_name(name: str) -> str:
    """TensorRT's name of a type as metadata has it: "HALF" -> "fp16", "INT4" -> "int4"."""
    return short_name(DATA_TYPES[name]) if name in DATA_TYPES else name.lower()


def torch_dtype(data_type: Any) -> torch.dtype | None:
    """The torch dtype of a ``tensorrt.DataType``; None where torch has none."""
    return DATA_TYPES.get(data_type.name)
