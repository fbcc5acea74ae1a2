"""Calibration: the ranges that were found for a model's tensors, and the JSON file that keeps them (the calibration cache)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from .. import __version__
from ..errors import CalibrationCacheError, UserError
from ..replace_file import replace_file
from .choose_amax import check_algorithm
from .options import QuantizeOptions

_FORMAT = "torchkiln calibration"
_VERSION = 1


@dataclass(frozen=True)
class TensorRange:
    """What was seen of one tensor: ``amax``, the magnitude that the largest integer stands for, and the smallest and the largest value."""

    amax: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """The ranges of a model's tensors.

    Attributes:
        fingerprint: of the model they belong to.
        algorithm, percentile: how ``amax`` was chosen.
        batches, samples: how much data was seen; the file has both for every tensor, since all see the same.
        options: which layers become int8.
        tensors: name -> range, for every tensor that some choice of options quantizes.
    """

    fingerprint: str
    algorithm: str
    percentile: float
    batches: int
    samples: int
    options: QuantizeOptions
    tensors: Mapping[str, TensorRange]

    def write(self, path: str | PathLike[str]) -> None:
        """Write the cache, atomically. Raises UserError when it cannot be written."""
        rows = {
            name: {"amax": t.amax, "min": t.low, "max": t.high, "algorithm": self.algorithm, "batches": self.batches}
            for name, t in self.tensors.items()
        }
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "torchkiln": __version__,
            "model": self.fingerprint,
            "algorithm": self.algorithm,
            "percentile": self.percentile,
            "batches": self.batches,
            "samples": self.samples,
            "options": self.options.as_json(),
        }
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        text = f'{json.dumps(head, indent=2)[:-2]},\n  "tensors": {{\n{lines}\n  }}\n}}\n'
        try:
            with replace_file(os.fspath(path)) as file:
                file.write(text.encode())
        except OSError as error:
            raise UserError(f"calibration cache {path}: cannot be written: {error.strerror}") from error

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Calibration:
        """The cache's content. Raises CalibrationCacheError when there is none, and for a file that is damaged or something else."""
        try:
            with open(path, encoding="utf-8") as file:
                data = json.load(file)
        except OSError as error:
            raise CalibrationCacheError(f"calibration cache {path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise CalibrationCacheError(f"calibration cache {path}: is no JSON: {error}") from error
        try:
            return _decode(data)
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # UserError is a ValueError
            raise CalibrationCacheError(f"calibration cache {path}: is no calibration of torchkiln: {type(error).__name__}: {error}") from error


def _decode(data: Any) -> Calibration:
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ValueError(f'expected an object with "format": "{_FORMAT}"')
    if data["version"] != _VERSION:
        raise ValueError(f"version {data['version']!r}: this torchkiln reads version {_VERSION}")
    check_algorithm(data["algorithm"], data["percentile"])
    if not isinstance(data["tensors"], dict):
        raise TypeError("tensors: expected an object")
    return Calibration(
        fingerprint=str(data["model"]),
        algorithm=data["algorithm"],
        percentile=float(data["percentile"]),
        batches=_count(data["batches"], "batches"),
        samples=_count(data["samples"], "samples"),
        options=QuantizeOptions.from_json(data["options"]),
        tensors={name: _range(row, name) for name, row in data["tensors"].items()},
    )


def _range(row: Any, name: str) -> TensorRange:
    amax, low, high = (float(row[key]) for key in ("amax", "min", "max"))
    if not all(map(math.isfinite, (amax, low, high))) or amax < 0 or low > high:
        raise ValueError(f"tensor {name}: expected finite numbers, amax >= 0 and min <= max, got {row}")
    return TensorRange(amax, low, high)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a number of 1 and more, got {value!r}")
    return value
