"""padding: images smaller than a window are padded on both sides, and outputs cropped again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..errors import UserError

MODES = ("constant", "reflect", "replicate", "circular")

#: Voxels before and after, for each dimension.
Padding = tuple[tuple[int, int], ...]


def find_padding(size: Sequence[int], roi_size: Sequence[int]) -> Padding:
    """What makes each dimension at least as large as a window; of an odd number, the larger part comes after."""
    missing = [max(roi - own, 0) for own, roi in zip(size, roi_size, strict=True)]
    return tuple((n // 2, n - n // 2) for n in missing)


def pad(tensor: torch.Tensor, padding: Padding, mode: str, cval: float) -> torch.Tensor:
    """``tensor`` (images, channels, *space), padded as torch's function of that name. Raises UserError where the mode cannot pad as much."""
    if not any(map(any, padding)):
        return tensor
    flat = [n for pair in reversed(padding) for n in pair]
    if mode == "constant":
        return F.pad(tensor, flat, mode, cval)
    if cval:
        raise UserError(f"sliding_window_inference: cval: it is for padding_mode='constant' alone, got {cval} with {mode!r}")
    least = {"reflect": 1, "circular": 0}.get(mode)
    for dim, (pair, size) in enumerate(zip(padding, tensor.shape[2:], strict=True)):
        if least is not None and max(pair) > size - least:
            raise UserError(
                f"sliding_window_inference: padding_mode: {mode!r} cannot add {max(pair)} to dimension {dim} of size {size}: expected at most "
                f"{size - least}. Use 'replicate' or 'constant', or a smaller roi_size"
            )
    try:
        return F.pad(tensor, flat, mode)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(f"sliding_window_inference: padding_mode: torch cannot pad {tuple(tensor.shape)} with {mode!r}: {error}") from None


def crop(output: torch.Tensor, padding: Padding, size: Sequence[int], roi_size: Sequence[int]) -> torch.Tensor:
    """An output of a padded image without what the padding gave.

    Args:
        size: of the image before it was padded.
    """
    for dim, (before, after) in enumerate(padding):
        if before or after:
            # A dimension that was padded has a window's size, at the output's own resolution.
            scale = output.shape[dim + 2] / roi_size[dim]
            low, high = round(before * scale), round((before + size[dim]) * scale)
            output = output.narrow(dim + 2, low, high - low)
    return output


def read_padding_mode(mode: object) -> str:
    """Raises UserError."""
    value = getattr(mode, "value", mode)
    if value not in MODES:
        raise UserError(f"sliding_window_inference: padding_mode: expected one of {', '.join(MODES)}, got {mode!r}")
    return str(value)
