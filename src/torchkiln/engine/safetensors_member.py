"""The .safetensors members: named tensors as a JSON header and raw bytes (https://github.com/huggingface/safetensors).

Written and read here rather than by the safetensors package because weights are hundreds of megabytes: the package's in-memory
calls copy them twice, and its file calls cannot read a member of an archive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..errors import CompilerBug, CorruptEngineFile
from .strict_json import dump_json, load_json

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 64
MAX_HEADER_BYTES = 100_000_000


def tensor_chunks(tensors: Mapping[str, torch.Tensor], where: str) -> Iterator[bytes | memoryview]:
    """The member's bytes, piece by piece; a tensor's piece is its own memory when it is contiguous and on the CPU.

    Raises CompilerBug naming the tensor for a dtype the format lacks.
    """
    # Widest first, so that every tensor starts at a multiple of its element size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in _NAMES:
            raise CompilerBug(f"{where}: tensor {name!r}: expected a dtype among {', '.join(_DTYPES)}, got {tensor.dtype}")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = dump_json(header, where)
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        if tensor.numel():
            yield tensor_bytes(tensor).numpy().data


def tensor_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of ``tensor`` as a flat uint8 tensor on the CPU; copied only when it is not contiguous or not on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def parse_tensors(buffer: torch.Tensor, where: str) -> dict[str, torch.Tensor]:
    """The tensors in ``buffer`` (flat uint8, on the CPU), sharing its memory. Raises CorruptEngineFile."""
    size = buffer.numel()
    header_size = int.from_bytes(buffer[:8].numpy().tobytes(), "little") if size >= 8 else -1
    if not 0 <= header_size <= min(size - 8, MAX_HEADER_BYTES):
        raise CorruptEngineFile(f"{where}: expected a header of at most {max(0, size - 8)} bytes, got {header_size}")
    header = load_json(buffer[8 : 8 + header_size].numpy().tobytes(), f"{where}: header")
    if not isinstance(header, dict):
        raise CorruptEngineFile(f"{where}: header: expected an object, got {type(header).__name__}")
    data = buffer[8 + header_size :]
    entries = [(name, *_entry(entry, f"{where}: tensor {name!r:.100}")) for name, entry in header.items() if name != "__metadata__"]
    tensors = {}
    end = 0
    for name, dtype, shape, first, last in sorted(entries, key=lambda entry: entry[3:]):
        if first != end:
            raise CorruptEngineFile(f"{where}: tensor {name!r:.100}: expected data from byte {end}, got {first}")
        end = last
        if end > data.numel():
            raise CorruptEngineFile(f"{where}: tensor {name!r:.100}: expected data within {data.numel()} bytes, got {first} to {last}")
        piece = data[first:last]
        if piece.data_ptr() % dtype.itemsize:
            piece = piece.clone()
        tensors[name] = piece.view(dtype).view(shape)
    if end != data.numel():
        raise CorruptEngineFile(f"{where}: {data.numel() - end} bytes belong to no tensor")
    return tensors


def _entry(entry: Any, where: str) -> tuple[torch.dtype, list[int], int, int]:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in _DTYPES:
        raise CorruptEngineFile(f"{where}: expected an object with a dtype among {', '.join(_DTYPES)}")
    dtype = _DTYPES[entry["dtype"]]
    shape, offsets = _sizes(entry.get("shape"), where), _sizes(entry.get("data_offsets"), where)
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise CorruptEngineFile(f"{where}: shape {shape} of {entry['dtype']} does not fit data_offsets {offsets}")
    return dtype, shape, offsets[0], offsets[1]


def _sizes(numbers: Any, where: str) -> list[int]:
    if not isinstance(numbers, list) or len(numbers) > 64 or not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise CorruptEngineFile(f"{where}: expected shape and data_offsets as arrays of integers >= 0")
    return numbers
