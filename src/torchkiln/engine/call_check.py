"""CallCheck: whether a call's tensors are what the engine was built for. On the hot path, so the good case is a few comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..dtypes import dtype_name
from ..errors import InputMismatch
from ..inputs import Input
from .contents import EqualDims


class CallCheck:
    """Gives the tensors back, cast where the Input takes any floating dtype. Raises InputMismatch naming the input, the dimension, the range and
    the value."""

    def __init__(self, inputs: Sequence[Input], paths: Sequence[str], device: torch.device, equal_dims: EqualDims = ()) -> None:
        self._device = device
        self._paths = [spec.name or path for spec, path in zip(inputs, paths, strict=True)]
        self._equal_dims = equal_dims
        self._specs = [(spec, path, torch.Size(spec.opt_shape) if not spec.is_dynamic else None) for spec, path in zip(inputs, paths, strict=True)]
        self._dtypes = [spec.dtype for spec in inputs]
        #: The shapes last found right: most calls have them again.
        self._shapes: tuple[torch.Size | None, ...] = (None,) * len(inputs)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        device = self._device
        for tensor, dtype, shape in zip(tensors, self._dtypes, self._shapes):  # noqa: B905 (checked by flatten; this is the hot path)
            if (
                tensor.dtype is not dtype
                or tensor.shape != shape
                or tensor.device != device
                or tensor.requires_grad
                or tensor.layout is not torch.strided
            ):
                return self._check_all(tensors)
        return tensors

    def _check_all(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        cast: dict[int, torch.Tensor] = {}
        for index, (spec, path, fixed_shape) in enumerate(self._specs):
            tensor = tensors[index]
            if spec.any_float and tensor.dtype is not spec.dtype and tensor.is_floating_point():
                tensor = cast[index] = tensor.to(spec.dtype)
            if tensor.dtype is not spec.dtype or tensor.device != self._device or tensor.requires_grad or tensor.layout is not torch.strided:
                self._explain(tensor, spec, path)
            shape = tensor.shape
            if shape != fixed_shape and (fixed_shape is not None or not _in_range(shape, spec)):
                self._explain(tensor, spec, path)
        for group in self._equal_dims:
            if len({tensors[index].shape[dim] for index, dim in group}) > 1:
                sizes = ", ".join(f"dimension {dim} of {self._paths[index]} is {tensors[index].shape[dim]}" for index, dim in group)
                raise InputMismatch(f"engine: these must be the same size in this model, as torch.export found: {sizes}")
        self._shapes = tuple(tensor.shape for tensor in tensors)
        return [cast.get(index, tensor) for index, tensor in enumerate(tensors)] if cast else tensors

    def _explain(self, tensor: torch.Tensor, spec: Input, path: str) -> None:
        where = f"engine: input {spec.name or path} ({path})" if spec.name else f"engine: input {path}"
        if tensor.layout is not torch.strided:
            raise InputMismatch(f"{where}: expected a dense tensor, got {tensor.layout}: call .to_dense()")
        if tensor.dtype != spec.dtype:
            want = dtype_name(spec.dtype)
            raise InputMismatch(
                f"{where}: expected dtype {want}, got {str(tensor.dtype).removeprefix('torch.')}: call .to(torch.{want}), "
                "or compile with Input(dtype=...) for what you pass"
            )
        if tensor.device != self._device:
            raise InputMismatch(f"{where}: expected device {self._device}, got {tensor.device}: call .to({str(self._device)!r})")
        if tensor.dim() != len(spec.opt_shape):
            raise InputMismatch(f"{where}: expected rank {len(spec.opt_shape)}, got shape {tuple(tensor.shape)}")
        for d, (lo, size, hi) in enumerate(zip(spec.min_shape, tensor.shape, spec.max_shape, strict=True)):
            if not lo <= size <= hi:
                expected = f"{lo}" if lo == hi else f"{lo} to {hi}"
                raise InputMismatch(
                    f"{where}: dimension {d}: expected {expected}, got {size} (shape {tuple(tensor.shape)}): compile with "
                    "Input(min_shape=..., opt_shape=..., max_shape=...) that covers it"
                )
        if tensor.requires_grad:
            raise InputMismatch(f"{where}: the tensor requires grad, but an engine computes no gradients: pass tensor.detach()")


def _in_range(shape: torch.Size, spec: Input) -> bool:
    return len(shape) == len(spec.opt_shape) and all(lo <= size <= hi for lo, size, hi in zip(spec.min_shape, shape, spec.max_shape, strict=True))
