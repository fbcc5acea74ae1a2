"""cublaslt: matrix products by cuBLASLt with an epilogue that torch's operators do not offer: bias, residual and activation in one.

``torch.ops.torchkiln.cublaslt.out`` calls the library through ctypes, as torch has loaded it; on the CPU it computes what it means in torch.
Source: the cuBLAS documentation, "Using the cuBLASLt API", and cublasLt.h.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from ...errors import BuildFailed, MissingPackage
from ...fused_ops.activation import activate

#: Activations that cuBLASLt computes; its gelu is the one with tanh.
ACTIVATIONS = ("none", "relu", "gelu_tanh")
#: The algorithms that are asked for: a rank above is not given.
RANKS = 8

_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}
_COMPUTE_FLOAT, _COMPUTE_TF32 = 68, 77
_TRANSPOSE_A, _EPILOGUE, _BIAS_POINTER, _BIAS_TYPE = 3, 7, 8, 26
_EPILOGUES = {"none": 1, "relu": 2, "gelu_tanh": 32}
_WITH_BIAS = {"none": 4, "relu": 6, "gelu_tanh": 36}
_WORKSPACE_BYTES = 1
_ALIGNMENTS = (5, 6, 7, 8)
_POINTER_BYTES = 16


class _Heuristic(ctypes.Structure):
    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@cache
def _library() -> ctypes.CDLL:
    major = (torch.version.cuda or "12").split(".")[0]
    name = f"cublasLt64_{major}.dll" if sys.platform == "win32" else f"libcublasLt.so.{major}"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise MissingPackage(f"{name}: cuBLASLt, which comes with torch for CUDA, cannot be loaded: {error}") from error


def _check(status: int, what: str) -> None:
    if status:
        raise BuildFailed(f"cuBLASLt: {what}: status {status} (cublasStatus_t)")


_handles: dict[int, ctypes.c_void_p] = {}
_algorithms: dict[tuple[object, ...], list[ctypes.Array[ctypes.c_uint64]]] = {}
_lock = threading.Lock()


def _handle(device: int) -> ctypes.c_void_p:
    """The library's handle of the device, which is the current one. May be used by several threads at once."""
    with _lock:
        if device not in _handles:
            handle = ctypes.c_void_p()
            _check(_library().cublasLtCreate(ctypes.byref(handle)), "cublasLtCreate")
            _handles[device] = handle
        return _handles[device]


@contextmanager
def _made(kind: str, *arguments: object) -> Iterator[ctypes.c_void_p]:
    """A cublasLtMatmulDesc, MatrixLayout or MatmulPreference for the time of a call."""
    made = ctypes.c_void_p()
    _check(getattr(_library(), f"cublasLt{kind}Create")(ctypes.byref(made), *arguments), f"cublasLt{kind}Create")
    try:
        yield made
    finally:
        getattr(_library(), f"cublasLt{kind}Destroy")(made)


def _set(kind: str, made: ctypes.c_void_p, attribute: int, value: Any) -> None:
    status = getattr(_library(), f"cublasLt{kind}SetAttribute")(made, attribute, ctypes.byref(value), ctypes.sizeof(value))
    _check(status, f"cublasLt{kind}SetAttribute {attribute}")


def _layout(tensor: torch.Tensor) -> tuple[int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64]:
    """Rows of elements next to each other are the columns of the library, which counts down columns."""
    apart = tensor.stride(0) if tensor.shape[0] > 1 else tensor.shape[1]
    return _TYPES[tensor.dtype], ctypes.c_uint64(tensor.shape[1]), ctypes.c_uint64(tensor.shape[0]), ctypes.c_int64(apart)


def _product_cuda(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    workspace: torch.Tensor | None,
    activation: str,
    math: str,
    rank: int,
    *,
    out: torch.Tensor,
) -> None:
    _check_operands(x, weight, bias, residual, workspace, rank, out)
    library, device = _library(), out.device.index
    c = out if residual is None else residual
    compute = _COMPUTE_TF32 if math == "tf32" and x.dtype == torch.float32 else _COMPUTE_FLOAT
    with torch.cuda.device(device), _made("MatmulDesc", compute, _TYPES[torch.float32]) as product:
        _set("MatmulDesc", product, _TRANSPOSE_A, ctypes.c_int32(1))
        _set("MatmulDesc", product, _EPILOGUE, ctypes.c_uint32((_EPILOGUES if bias is None else _WITH_BIAS)[activation]))
        if bias is not None:
            _set("MatmulDesc", product, _BIAS_TYPE, ctypes.c_int32(_TYPES[bias.dtype]))
            _set("MatmulDesc", product, _BIAS_POINTER, ctypes.c_void_p(bias.data_ptr()))
        with (
            _made("MatrixLayout", *_layout(weight)) as a,
            _made("MatrixLayout", *_layout(x)) as b,
            _made("MatrixLayout", *_layout(c)) as c_layout,
            _made("MatrixLayout", *_layout(out)) as d,
        ):
            size = 0 if workspace is None else workspace.numel() * workspace.element_size()
            specs = [(t.dtype, tuple(t.shape), t.stride(0)) for t in (x, weight, c, out)]
            key = (device, *specs, None if bias is None else bias.dtype, residual is None, activation, math, size)
            algorithms = _algorithms_of(key, device, product, (a, b, c_layout, d), size)
            if not algorithms:
                raise BuildFailed(f"cuBLASLt: it has no algorithm for {tuple(x.shape)} by {tuple(weight.shape)}")
            status = library.cublasLtMatmul(
                _handle(device),
                product,
                ctypes.byref(ctypes.c_float(1.0)),
                ctypes.c_void_p(weight.data_ptr()),
                a,
                ctypes.c_void_p(x.data_ptr()),
                b,
                ctypes.byref(ctypes.c_float(0.0 if residual is None else 1.0)),
                ctypes.c_void_p(c.data_ptr()),
                c_layout,
                ctypes.c_void_p(out.data_ptr()),
                d,
                # Another version of the library, or a GPU of another size, may have fewer: the last then, which is as right.
                ctypes.byref(algorithms[min(rank, len(algorithms) - 1)]),
                ctypes.c_void_p(0 if workspace is None else workspace.data_ptr()),
                ctypes.c_size_t(size),
                ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream),
            )
            _check(status, f"cublasLtMatmul of {tuple(x.shape)} by {tuple(weight.shape)}")


def _check_operands(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    workspace: torch.Tensor | None,
    rank: int,
    out: torch.Tensor,
) -> None:
    """Raises BuildFailed unless the operands are what the library is told they are: it gets addresses alone, and a file may say anything."""
    rows, depth, columns = out.shape[0], weight.shape[1] if weight.dim() == 2 else -1, out.shape[-1]
    expected = (("x", x, (rows, depth)), ("weight", weight, (columns, depth)), ("residual", residual, (rows, columns)), ("out", out, (rows, columns)))
    for name, matrix, shape in expected:
        if matrix is None:
            continue
        is_dense = matrix.dim() == 2 and (matrix.stride(1) == 1 or shape[1] == 1) and (shape[0] == 1 or matrix.stride(0) >= shape[1])
        if tuple(matrix.shape) != shape or not is_dense or matrix.dtype not in _TYPES or matrix.device != out.device:
            raise BuildFailed(f"cuBLASLt: {name}: expected {shape} in rows on {out.device}, got {tuple(matrix.shape)}, strides {matrix.stride()}")
    for name, vector, size in (("bias", bias, columns), ("workspace", workspace, None)):
        if vector is None:
            continue
        if not vector.is_contiguous() or vector.device != out.device or (size is not None and tuple(vector.shape) != (size,)):
            raise BuildFailed(f"cuBLASLt: {name}: expected a dense vector on {out.device}, got {tuple(vector.shape)}, strides {vector.stride()}")
    if not 0 <= rank < RANKS:
        raise BuildFailed(f"cuBLASLt: expected an algorithm's number from 0 to {RANKS - 1}, got {rank}")


def version() -> int:
    """Of the library; 0 where it cannot be loaded."""
    try:
        get_version = _library().cublasLtGetVersion
    except MissingPackage:
        return 0
    get_version.restype = ctypes.c_size_t
    return int(get_version())


def _algorithms_of(
    key: tuple[object, ...], device: int, product: ctypes.c_void_p, layouts: tuple[ctypes.c_void_p, ...], workspace_bytes: int
) -> list[ctypes.Array[ctypes.c_uint64]]:
    """What the library's heuristic gives for a product, the best guess first. Asked once for each."""
    with _lock:
        if key in _algorithms:
            return _algorithms[key]
    found = (_Heuristic * RANKS)()
    count = ctypes.c_int(0)
    with _made("MatmulPreference") as preference:
        _set("MatmulPreference", preference, _WORKSPACE_BYTES, ctypes.c_uint64(workspace_bytes))
        for attribute in _ALIGNMENTS:
            _set("MatmulPreference", preference, attribute, ctypes.c_uint32(_POINTER_BYTES))
        status = _library().cublasLtMatmulAlgoGetHeuristic(_handle(device), product, *layouts, preference, RANKS, found, ctypes.byref(count))
    _check(status, "cublasLtMatmulAlgoGetHeuristic")
    algorithms = [(ctypes.c_uint64 * 8)(*each.algorithm) for each in found[: count.value] if each.state == 0]
    with _lock:
        return _algorithms.setdefault(key, algorithms)


def _product_cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    workspace: torch.Tensor | None,
    activation: str,
    math: str,
    rank: int,
    *,
    out: torch.Tensor,
) -> None:
    del workspace, math, rank
    y = x.float() @ weight.float().T
    for term in (bias, residual):
        if term is not None:
            y = y + term.float()
    out.copy_(activate(y, activation))


_operators = torch.library.Library("torchkiln", "FRAGMENT")
_operators.define(
    "cublaslt.out(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? workspace, str activation, str math, int rank, *, "
    "Tensor(a!) out) -> ()"
)
_operators.impl("cublaslt.out", _product_cuda, "CUDA")
_operators.impl("cublaslt.out", _product_cpu, "CPU")
