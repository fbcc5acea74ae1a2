"""weights: how much each voxel of a window counts, and what the sum of all windows at a voxel is divided by."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import UserError
from .tensor_cache import TensorCache

MODES = ("constant", "gaussian")
#: Least weight of a voxel: one that had none would be divided by 0 where a single window covers it.
MIN_WEIGHT = 1e-3

#: Maps that are computed again and again for images of one size. At most 64 of them, 512 MiB in all.
CACHE = TensorCache(max_count=64, max_bytes=512 << 20)


def importance_map(roi_size: Sequence[int], mode: str, sigma_scale: Sequence[float], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The weight of each voxel of a window, of shape ``roi_size``: 1, or the product of a Gaussian in each dimension with
    ``sigma = sigma_scale * size``, at least MIN_WEIGHT (or its own least value, if that is larger). As MONAI's ``compute_importance_map``."""
    if mode == "constant":
        return torch.ones(tuple(roi_size), device=device, dtype=dtype)

    def compute() -> torch.Tensor:
        product = torch.ones((), dtype=torch.float32)
        for size, scale in zip(roi_size, sigma_scale, strict=True):
            distance = torch.arange(size, dtype=torch.float32) - (size - 1) / 2.0
            product = product.unsqueeze(-1) * torch.exp(distance**2 / (-2 * (size * scale) ** 2))
        return product.clamp_(min=max(product.min().item(), MIN_WEIGHT)).to(device, dtype)

    return CACHE.get(("importance", tuple(roi_size), mode, tuple(sigma_scale), device, dtype), compute)


def reciprocal_counts(weight: torch.Tensor, starts: Sequence[Sequence[int]], region: Sequence[tuple[int, int]]) -> torch.Tensor:
    """1 / the sum of ``weight`` over all windows that cover a voxel, for the voxels of ``region``.

    As windows are at every combination of ``starts``, the sums are folded one dimension after another.

    Args:
        weight: of shape (1, 1, *window).
        starts: for each dimension, the first voxel of each window.
        region: for each dimension, the first voxel and the last + 1.
    """
    count = weight
    for dim, (places, (low, high)) in enumerate(zip(starts, region, strict=True), start=2):
        size = weight.shape[dim]
        shape = list(count.shape)
        shape[dim] = high - low
        folded = count.new_zeros(shape)
        for place in places:
            first, last = max(place, low), min(place + size, high)
            if first < last:
                folded.narrow(dim, first - low, last - first).add_(count.narrow(dim, first - place, last - first))
        count = folded
    return count.reciprocal_()


def read_mode(mode: object) -> str:
    """Raises UserError."""
    value = getattr(mode, "value", mode)
    if value not in MODES:
        raise UserError(f"sliding_window_inference: mode: expected one of {', '.join(MODES)}, got {mode!r}")
    return str(value)
