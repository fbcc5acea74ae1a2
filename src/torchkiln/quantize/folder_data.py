"""FolderData: calibration batches from the files of a folder: arrays (.npy) and images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import MissingPackage, UserError
from ..inputs import Input

ARRAYS = (".npy",)
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class FolderData:
    """Batches of the files in a folder and its subfolders, in the order of their names, for a model of one input.

    A .npy file is a sample, of the input's shape without its first dimension, or several along a first dimension; it is taken as it is. An image is
    read in the input's number of channels (1 or 3), resized to its height and width (bilinear), scaled to 0..1, and ``(x - mean) / std`` is taken.

    Args:
        folder: the folder.
        spec: the model's input.
        batch_size: samples in a batch.
        limit: files to read at most, spread evenly over the names; None for all.
        mean, std: of images, one number for all channels or one a channel.

    Raises UserError when there is nothing to read or something does not fit, MissingPackage for an image without Pillow.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        spec: Input,
        *,
        batch_size: int,
        limit: int | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        self._spec = spec
        self._shape = spec.opt_shape[1:]
        self._batch_size = batch_size
        if not os.path.isdir(folder):
            raise UserError(f"calibration data: {folder} is not a folder")
        if batch_size < 1 or (limit is not None and limit < 1):
            raise UserError(f"calibration data: expected a batch size and a limit of 1 and more, got {batch_size} and {limit}")
        files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (*ARRAYS, *IMAGES))
        if not files:
            raise UserError(f"calibration data: {folder} has no files of the kinds {', '.join((*ARRAYS, *IMAGES))}")
        count = min(limit or len(files), len(files))
        self._files = [files[i * len(files) // count] for i in range(count)]
        self._mean, self._std = _per_channel(mean, "mean"), _per_channel(std, "std")
        if not bool((self._std > 0).all()):
            raise UserError(f"calibration data: std: expected numbers above 0, got {list(std)}")

    def __len__(self) -> int:
        """The number of batches when every file is one sample."""
        return -(-len(self._files) // self._batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        waiting: list[torch.Tensor] = []
        for path in self._files:
            waiting += self._samples(path)
            while len(waiting) >= self._batch_size:
                yield torch.stack(waiting[: self._batch_size])
                del waiting[: self._batch_size]
        if waiting:
            yield torch.stack(waiting)

    def _samples(self, path: Path) -> list[torch.Tensor]:
        value = self._array(path) if path.suffix.lower() in ARRAYS else self._image(path)
        if value.shape == self._shape:
            return [value]
        if value.shape[1:] == self._shape:
            return list(value)
        expected = "x".join(map(str, self._shape))
        raise UserError(f"calibration data: {path}: expected the shape {expected} or Nx{expected}, got {'x'.join(map(str, value.shape))}")

    def _array(self, path: Path) -> torch.Tensor:
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False)).to(self._spec.dtype)
        except (ValueError, TypeError, OSError, EOFError) as error:
            raise UserError(f"calibration data: {path}: is no array of numbers: {error}") from error

    def _image(self, path: Path) -> torch.Tensor:
        library = _import_pillow()
        if len(self._shape) != 3 or self._shape[0] not in (1, 3):
            raise UserError(f"calibration data: {path}: images are for inputs of Nx1xHxW or Nx3xHxW, this model takes {self._spec.opt_shape}")
        channels, height, width = self._shape
        try:
            with library.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise UserError(f"calibration data: {path}: has more than 8 bits a channel (mode {image.mode}): make a .npy file of it")
                resized = image.convert("RGB" if channels == 3 else "L").resize((width, height), library.Resampling.BILINEAR)
        except (OSError, EOFError, SyntaxError, library.DecompressionBombError) as error:
            raise UserError(f"calibration data: {path}: is no image that can be read: {error}") from error
        pixels = torch.from_numpy(np.array(resized)).float().div(255).reshape(height, width, channels).permute(2, 0, 1)
        return ((pixels - self._mean) / self._std).to(self._spec.dtype)


def _per_channel(values: Sequence[float], name: str) -> torch.Tensor:
    if len(values) not in (1, 3):
        raise UserError(f"calibration data: {name}: expected 1 or 3 numbers, got {list(values)}")
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackage(f"reading images needs the package Pillow ({error}): pip install pillow, or give .npy files") from error
    return Image
