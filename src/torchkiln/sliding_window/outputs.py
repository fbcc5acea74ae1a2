"""outputs: what a predictor returns as a list of tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import UserError


def flatten(value: Any) -> tuple[list[Any] | None, list[torch.Tensor]]:
    """The keys of a dict, sorted (None for anything else), and the tensors. Raises UserError for what is not a tensor, a sequence or a dict."""
    keys = sorted(value) if isinstance(value, Mapping) else None
    if isinstance(value, torch.Tensor):
        tensors = [value]
    elif keys is not None:
        tensors = [value[key] for key in keys]
    else:
        tensors = list(value) if isinstance(value, Sequence) else [value]
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"predictor: expected a tensor, or a sequence or dict of tensors, got {type(value).__name__} with {type(tensor).__name__}"
            )
    return keys, tensors


def pack(keys: list[Any] | None, tensors: Sequence[torch.Tensor]) -> Any:
    """A dict where there are keys, one tensor by itself, otherwise a tuple."""
    if keys is not None:
        return dict(zip(keys, tensors, strict=False))
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def check_blendable(tensors: Sequence[torch.Tensor], rows: int, rank: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raises UserError unless each is (rows, channels, *space) of a floating dtype on ``device``."""
    for index, tensor in enumerate(tensors):
        where = f"predictor: output {index}: "
        if tensor.dim() != rank or tensor.shape[0] != rows:
            raise UserError(f"{where}expected a shape of {rank} dimensions, the first of them {rows} (windows), got {tuple(tensor.shape)}")
        if not (tensor.is_floating_point() or (tensor.is_complex() and dtype.is_complex)):
            raise UserError(
                f"{where}windows of {tensor.dtype} cannot be blended, expected a floating dtype: give probabilities or logits out of the predictor "
                "and apply argmax or a threshold to the result"
            )
        if tensor.device != device:
            raise UserError(f"{where}expected device {device} (sw_device), got {tensor.device}")
