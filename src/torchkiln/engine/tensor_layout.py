"""The layout of stored tensors: files keep contiguous bytes, graphs want the strides and device their tensors had.

A channels_last weight is stored with its dimensions in memory order and the permutation beside it; complex tensors are stored as
pairs of reals (safetensors has no complex128).
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import CorruptEngineFile, UserError


def stored_tensor(tensor: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, dict[str, Any]]:
    """``tensor`` in the form a file keeps, and its layout as JSON values. ``device`` is the engine's.

    Raises UserError for tensor subclasses, sparse and quantized tensors.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) or tensor.layout is not torch.strided or tensor.is_quantized:
        raise UserError(f"expected a dense torch.Tensor, got {type(tensor).__qualname__} with layout {tensor.layout}")
    value = tensor.detach()
    layout: dict[str, Any] = {"shape": list(value.shape)}
    if value.device.type != device.type:
        layout["device"] = str(value.device.type)
    if value.is_complex():
        layout["complex"] = True
        value = torch.view_as_real(value.resolve_conj())
    value = value.resolve_neg()
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda d: (-strides[d], d))
    if not value.is_contiguous() and value.permute(order).is_contiguous():
        layout["order"] = order
        return value.permute(order), layout
    return value.contiguous(), layout


def restore_tensor(stored: torch.Tensor, layout: Any, device: torch.device, where: str) -> torch.Tensor:
    """The tensor of ``stored_tensor``'s result, on ``device``; no copy when it is there already. Raises CorruptEngineFile."""
    if not isinstance(layout, dict) or not isinstance(layout.get("shape"), list):
        raise CorruptEngineFile(f"{where}: expected an object with its shape")
    value = stored
    if "order" in layout:
        order = layout["order"]
        if not isinstance(order, list) or not all(type(d) is int for d in order) or sorted(order) != list(range(value.dim())):
            raise CorruptEngineFile(f"{where}: expected a permutation of {value.dim()} dimensions, got {order!r:.200}")
        value = value.permute([order.index(d) for d in range(len(order))])
    if layout.get("complex"):
        if value.dtype not in (torch.float16, torch.float32, torch.float64) or value.dim() == 0 or value.shape[-1] != 2 or value.stride(-1) != 1:
            raise CorruptEngineFile(f"{where}: expected pairs of reals, got {value.dtype} {tuple(value.shape)}")
        # view_as_complex wants pairs at even offsets; tensors lie in the file as they come.
        value = torch.view_as_complex(value.clone() if value.storage_offset() % 2 else value)
    if list(value.shape) != layout["shape"]:
        raise CorruptEngineFile(f"{where}: expected shape {layout['shape']!r:.200}, got {list(value.shape)}")
    kept = layout.get("device")
    if kept not in (None, "cpu"):
        raise CorruptEngineFile(f"{where}: expected the engine's device or cpu, got {kept!r:.50}")
    return value.to(device if kept is None else torch.device("cpu"))
