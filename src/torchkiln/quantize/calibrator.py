"""calibrators: where the ranges of a model's tensors come from. Data, or a file in which an earlier run kept what it found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sized
from enum import Enum
from os import PathLike
from typing import Any, Protocol

import torch

from ..errors import CalibrationCacheError, UserError
from ..program import Program
from ..progress import progress
from .batches import read_batch, split_batch
from .calibration import Calibration, TensorRange
from .choose_amax import DEFAULT_PERCENTILE, check_algorithm, choose_amax
from .fingerprint import fingerprint
from .observe import Observer
from .options import QuantizeOptions
from .tensors import observed_tensors


class CalibrationAlgo(Enum):
    """Torch-TensorRT's names of the algorithms."""

    ENTROPY_CALIBRATION = "entropy"
    ENTROPY_CALIBRATION_2 = "entropy"  # noqa: PIE796  # another name of the same
    LEGACY_CALIBRATION = "percentile"
    MINMAX_CALIBRATION = "max"


class Calibrator(Protocol):
    """What the option ``calibrator`` takes."""

    options: QuantizeOptions | None
    sample: list[torch.Tensor] | None
    """Data to check the int8 engine with: what the program is called with on the first batch, once ``calibrate`` was called. None without data."""

    def calibrate(self, program: Program) -> Calibration:
        """The ranges of the lowered program's tensors."""
        ...


class DataLoaderCalibrator:
    """Finds the ranges by running the model over data.

    Args:
        dataloader: any iterable of batches: tensors, tuples, lists or dicts of tensors. A dict is read by the names of the model's inputs; of
            anything else the first tensors are the inputs, and what follows them, such as a label, is not read. Read once. Batches may have any size.
        algorithm: "entropy", "max", "percentile" or "mse": see choose_amax.py.
        percentile: for "percentile": how much of the values is kept, in percent.
        cache_file: a JSON file to keep the result in; written after the data was read.
        use_cache: read ``cache_file`` in place of the data, where it exists.
        device: where the model runs while it is observed. It must be where the engine is built; that is also the default.
        options: which layers become int8.
        algo_type: Torch-TensorRT's way to name the algorithm.
    """

    def __init__(
        self,
        dataloader: Iterable[Any],
        *,
        algorithm: str | CalibrationAlgo = "entropy",
        percentile: float = DEFAULT_PERCENTILE,
        cache_file: str | PathLike[str] | None = None,
        use_cache: bool = False,
        device: torch.device | str | None = None,
        options: QuantizeOptions | None = None,
        algo_type: CalibrationAlgo | None = None,
    ) -> None:
        chosen = algo_type or algorithm
        self.algorithm = chosen.value if isinstance(chosen, CalibrationAlgo) else chosen
        check_algorithm(self.algorithm, percentile)
        if not isinstance(dataloader, Iterable):
            raise UserError(f"DataLoaderCalibrator: expected an iterable of batches, got {type(dataloader).__name__}")
        if use_cache and cache_file is None:
            raise UserError("DataLoaderCalibrator: use_cache needs cache_file, the file to read")
        self.percentile = float(percentile)
        self.cache_file = cache_file
        self.use_cache = use_cache
        self.device = torch.device(device) if device is not None else None
        self.options = options
        self.sample: list[torch.Tensor] | None = None
        self._dataloader = dataloader
        self._found: Calibration | None = None

    def calibrate(self, program: Program) -> Calibration:
        """The ranges of the lowered ``program``: from the data, once; a second program must be the same model.

        Raises UserError for data that does not fit the model, and CalibrationCacheError for another model's cache.
        """
        model = fingerprint(program.graph_module)
        if self._found is None and self.use_cache and self.cache_file is not None and os.path.exists(self.cache_file):
            self._found = self._read_cache(program, model)
        if self._found is None:
            self._found = self._observe(program, model)
            if self.cache_file is not None:
                self._found.write(self.cache_file)
        if self._found.fingerprint != model:
            raise UserError("calibrator: was used for another model before: make one for each model")
        return self._found

    def _read_cache(self, program: Program, model: str) -> Calibration:
        assert self.cache_file is not None
        found = read_cache(self.cache_file, program, model)
        asked = (self.algorithm, self.percentile if self.algorithm == "percentile" else None)
        kept = (found.algorithm, found.percentile if found.algorithm == "percentile" else None)
        if asked != kept:
            made, wanted = (" ".join(str(part) for part in parts if part is not None) for parts in (kept, asked))
            raise CalibrationCacheError(f"calibration cache {self.cache_file}: was made by {made}, asked for is {wanted}: remove it, or ask for that")
        return found

    def _observe(self, program: Program, model: str) -> Calibration:
        device = program.example_inputs[0].device
        if self.device is not None and (self.device.type, self.device.index or 0) != (device.type, device.index or 0):
            raise UserError(f"calibrator: device {self.device} was asked for, but the engine is built on {device}: leave it out")
        tensors = observed_tensors(program.graph_module)
        observer = Observer(program.graph_module, tensors)
        total = len(self._dataloader) if isinstance(self._dataloader, Sized) else 0
        batches = samples = 0
        for number, batch in enumerate(self._dataloader):
            progress("calibrate", number, total)
            where = f"calibrator: batch {number}"
            inputs = [t.to(device) for t in read_batch(batch, program.inputs, where)]
            for part in split_batch(inputs, program.inputs, where):
                if self.sample is None:
                    self.sample = part
                observer.run(part)
            batches += 1
            samples += inputs[0].shape[0] if inputs[0].dim() else 1
        progress("calibrate", batches, batches)
        if not batches:
            raise UserError("calibrator: the data has no batch (an iterator that was read before has none left)")
        progress(f"choose ranges by {self.algorithm}", 0, 0)
        ranges = {name: TensorRange(choose_amax(h, self.algorithm, self.percentile), h.low, h.high) for name, h in observer.histograms.items()}
        return Calibration(model, self.algorithm, self.percentile, batches, samples, self.options or QuantizeOptions(), ranges)


class CacheCalibrator:
    """Takes the ranges from a calibration cache, without data.

    Args:
        cache_file: what a DataLoaderCalibrator or ``torchkiln calibrate`` wrote.
        options: which layers become int8. Default: those kept in the file.
    """

    def __init__(self, cache_file: str | PathLike[str], *, options: QuantizeOptions | None = None) -> None:
        self.cache_file = cache_file
        self.options = options
        self.sample: list[torch.Tensor] | None = None

    def calibrate(self, program: Program) -> Calibration:
        """Raises CalibrationCacheError when the file is none, or another model's."""
        return read_cache(self.cache_file, program, fingerprint(program.graph_module))


def read_cache(path: str | PathLike[str], program: Program, model: str) -> Calibration:
    """The calibration in a file. Raises CalibrationCacheError when it belongs to another model than ``program``."""
    found = Calibration.read(path)
    if found.fingerprint != model:
        raise CalibrationCacheError(
            f"calibration cache {path}: belongs to another model (its fingerprint is {found.fingerprint[:12]}, this model's is {model[:12]}; "
            "other weights and another version of torch make another one): calibrate again, into another file"
        )
    missing = sorted(set(observed_tensors(program.graph_module).values()) - found.tensors.keys())
    if missing:
        raise CalibrationCacheError(f"calibration cache {path}: has no range for {', '.join(missing[:3])}: calibrate again")
    return found
