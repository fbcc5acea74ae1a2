"""The names of data types: one table, used by files, reports, command line and errors."""

from __future__ import annotations

import torch

from .errors import UserError

#: Name in files and on the command line -> torch dtype.
DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: The short names of the compute precisions, as on the command line (``--precision fp32,bf16``).
PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: What may be enabled, by its short name. int8 is no compute precision of its own: what is no convolution or linear layer computes in another.
ENABLED_PRECISIONS: dict[str, torch.dtype] = {**PRECISIONS, "int8": torch.int8}

#: Largest relative L2 error against float32, by the narrowest precision computed in. A rounding error of 2^-24, 2^-11 and 2^-8 per operation grows
#: over tens of layers by one to two orders of magnitude; a wrong result is far outside. bfloat16's is 8 times float16's, as its rounding error is.
#: int8 rounds inputs and weights of each layer to 1 part in 127 of their range, some 1 % of error a layer (docs/quantization.md).
TOLERANCES: dict[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2, torch.int8: 0.25}
_PRECISION_NAMES = {dtype: name for name, dtype in PRECISIONS.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``"float32"``. Raises UserError for a dtype no engine can carry."""
    try:
        return _NAMES[dtype]
    except KeyError:
        raise UserError(f"dtype {dtype} is not one an engine can carry: expected one of {', '.join(DTYPES)}") from None


def parse_dtype(name: str) -> torch.dtype:
    """``"float32"`` or ``"fp32"`` -> ``torch.float32``. Raises UserError."""
    dtype = DTYPES.get(name) or PRECISIONS.get(name)
    if dtype is None:
        raise UserError(f"unknown dtype {name!r}: expected one of {', '.join([*DTYPES, *PRECISIONS])}")
    return dtype


def precision_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bf16"``; the dtype's own name for one that is no compute precision."""
    return _PRECISION_NAMES.get(dtype) or dtype_name(dtype)


def parse_precision(name: str) -> torch.dtype:
    """``"bf16"`` -> ``torch.bfloat16``. Raises UserError."""
    try:
        return PRECISIONS[name]
    except KeyError:
        raise UserError(f"unknown precision {name!r}: expected one of {', '.join(PRECISIONS)}") from None
