"""data_types: ONNX's element types and tensors as torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from ...errors import ModelSourceError

_DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    # torch computes with no 4-bit integers: they are held in 8 bits.
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
}
#: Types of numpy extensions, which torch cannot take: read as integers of the same width.
_BITS = {torch.bfloat16: "int16", torch.float8_e4m3fn: "uint8", torch.float8_e5m2: "uint8"}


def torch_dtype(element_type: int, where: str) -> torch.dtype:
    """The torch dtype of an ONNX element type. Raises ModelSourceError for one that torch does not have (strings, E4M3FNUZ)."""
    if element_type not in _DTYPES:
        name = TensorProto.DataType.Name(element_type) if element_type in TensorProto.DataType.values() else str(element_type)
        raise ModelSourceError(f"{where}: elements of type {name} cannot be held in a PyTorch tensor: take that part out of the ONNX model")
    return _DTYPES[element_type]


def read_tensor(proto: TensorProto, folder: Path, where: str) -> torch.Tensor:
    """The tensor of a TensorProto; its data may lie in a file beside the model, in ``folder``. The proto's own data is dropped.

    Raises ModelSourceError: a file that is missing, short or outside of ``folder``; data that does not fit the shape; an unknown type.
    """
    dtype = torch_dtype(proto.data_type, f"{where}: tensor {proto.name!r}")
    if uses_external_data(proto):
        location = next((entry.value for entry in proto.external_data if entry.key == "location"), "")
        try:
            load_external_data_for_tensor(proto, str(folder))
        except (OSError, ValueError) as error:
            raise _unreadable(proto, folder, location, where, error) from error
        except Exception as error:  # onnx's checker raises a class of its own extension module, which has no public base
            if type(error).__name__ != "ValidationError":
                raise
            raise _unreadable(proto, folder, location, where, error) from error
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise ModelSourceError(f"{where}: tensor {proto.name!r} is damaged: its data does not fit {list(proto.dims)}: {error}") from error
    proto.ClearField("raw_data")
    if dtype in _BITS:
        return torch.from_numpy(array.view(_BITS[dtype]).copy()).view(dtype)
    if proto.data_type in (TensorProto.INT4, TensorProto.UINT4):
        array = array.astype("int8" if dtype is torch.int8 else "uint8")
    return torch.from_numpy(array.copy())


def _unreadable(proto: TensorProto, folder: Path, location: str, where: str, error: Exception) -> ModelSourceError:
    path = folder / location
    if location and not path.exists():
        return ModelSourceError(f"{where}: its weights are in {path}, which does not exist: copy that file to {folder}, beside the model")
    return ModelSourceError(f"{where}: the data of tensor {proto.name!r} could not be read from {path}: {error}")


def read_attribute(attribute: Any, folder: Path, where: str) -> Any:
    """A node's attribute as Python values: int, float, str, Tensor, lists of these; a graph stays a GraphProto."""
    from onnx import AttributeProto

    kinds = AttributeProto
    if attribute.ref_attr_name:
        raise ModelSourceError(f"{where}: attribute {attribute.name!r} refers to {attribute.ref_attr_name!r} outside of a function")
    match attribute.type:
        case kinds.INT:
            return attribute.i
        case kinds.FLOAT:
            return attribute.f
        case kinds.STRING:
            return attribute.s.decode(errors="replace")
        case kinds.INTS:
            return list(attribute.ints)
        case kinds.FLOATS:
            return list(attribute.floats)
        case kinds.STRINGS:
            return [text.decode(errors="replace") for text in attribute.strings]
        case kinds.TENSOR:
            return read_tensor(attribute.t, folder, where)
        case kinds.GRAPH:
            return attribute.g
    raise ModelSourceError(
        f"{where}: attribute {attribute.name!r} is of kind {kinds.AttributeType.Name(attribute.type)}, which PyTorch has nothing for"
    )
