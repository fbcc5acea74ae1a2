"""run_box: the windows of one box through the predictor, blended, on one device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..pool.replica import Result, ready_events
from .accumulate import Accumulator
from .gather import Gather
from .grid import Box, Place, Sizes
from .job import Job
from .memory import usable_bytes
from .outputs import check_blendable, flatten
from .predictor import window_memory
from .weights import CACHE, importance_map, reciprocal_counts


class DoesNotFit(Exception):
    """A box is too large for its device; half of it may not be."""


@dataclass(frozen=True)
class Part:
    """One output over a box, blended: ``value`` (images, channels, *space) lies at ``begin`` in an output whose space is ``full_size``."""

    value: torch.Tensor
    begin: tuple[int, ...]
    full_size: tuple[int, ...]


@dataclass(frozen=True)
class BoxResult:
    """Attributes:
    keys: of the predictor's dict, or None.
    parts: one for each output.
    """

    box: Box
    keys: list[Any] | None
    parts: list[Part]


def run_box(job: Job, box: Box, predictor: Any, device: torch.device, *, is_own: bool = False) -> BoxResult:
    """Raises DoesNotFit, or torch.OutOfMemoryError, where the box is too large for ``device``; UserError for outputs that cannot be blended.

    Args:
        is_own: whether ``predictor`` is an engine that nobody else calls meanwhile.
    """
    return _BoxRun(job, box, predictor, device).run(is_own)


class _BoxRun:
    def __init__(self, job: Job, box: Box, predictor: Any, device: torch.device) -> None:
        self._job, self._box, self._predictor, self._device = job, box, predictor, device
        self._places = box.places(job.grid)
        self._region = box.region(job.grid)
        self._outputs: list[_Output] = []
        self._weight = self._given_weight()
        if job.process_fn is not None:
            # A copy of the box's own, for process_fn to write to if it likes.
            self._map = self._weight.to(job.inputs.dtype if job.inputs.is_floating_point() else job.dtype, copy=True)
        self._weights: list[torch.Tensor] | None = None

    def run(self, is_own: bool) -> BoxResult:
        job, batching = self._job, self._job.batching
        self._check_room(job.output_shapes)
        gathers = [self._gather(tensor) for tensor in (job.inputs, job.condition) if tensor is not None]
        largest = batching.rows(min(batching.size, len(self._places)))
        shape = (largest, job.inputs.shape[1], *job.grid.roi_size)
        keys: list[Any] | None = None
        done = 0
        try:
            with window_memory(self._predictor if job.process_fn is None else None, shape, job.inputs.dtype, is_own) as memory:
                for low in range(0, len(self._places), batching.size):
                    high = min(low + batching.size, len(self._places))
                    keys = self._batch(gathers, low, high, memory)
                    done = high
                    job.ticks.add(high - low)
            return BoxResult(self._box, keys, self._finish())
        except BaseException:
            job.ticks.add(-done)
            raise

    def _gather(self, tensor: torch.Tensor) -> Gather:
        """Reads the box's windows from its part of ``tensor``: on the device, where there is room."""
        part = tensor[slice(*self._box.images)]
        for dim, (low, high) in enumerate(self._region, start=2):
            part = part.narrow(dim, low, high - low)
        if part.device != self._device:
            size = part.numel() * part.element_size()
            if size <= usable_bytes(self._device) / 2:
                # Memory of the CPU must hold the numbers when this returns, and may change after that.
                may_wait = self._device.type != "cuda" or part.is_pinned()
                part = part.to(self._device, non_blocking=not may_wait)
            elif self._box.halves() is not None:
                raise DoesNotFit(f"{size} bytes of the image")
        return Gather(part, self._relative(self._places), self._job.grid.roi_size)

    def _relative(self, places: Sequence[Place]) -> list[Place]:
        first = (self._box.images[0], *(low for low, _ in self._region))
        return [tuple(value - origin for value, origin in zip(place, first, strict=True)) for place in places]

    def _batch(self, gathers: Sequence[Gather], low: int, high: int, memory: torch.Tensor | None) -> list[Any] | None:
        job, count = self._job, high - low
        rows = job.batching.rows(count)
        windows, *conditions = [self._read(gather, low, high, rows, memory if index == 0 else None) for index, gather in enumerate(gathers)]
        kwargs = {**job.kwargs, "condition": conditions[0]} if conditions else job.kwargs
        coordinates = [self._slices(low, high, rows)] if job.with_coord else []
        keys, tensors = flatten(self._predictor(windows, *coordinates, *job.args, **kwargs))
        if rows != count:
            tensors = [tensor[:count] for tensor in tensors]
        if job.process_fn is not None:
            tensors = self._process(tensors, windows[:count])
        if job.only_first and len(tensors) > 1:
            if not self._outputs:
                warnings.warn(f"buffer_steps: of the predictor's {len(tensors)} outputs only the first is kept, as MONAI does", stacklevel=2)
            tensors, keys = tensors[:1], keys and keys[:1]
        check_blendable(tensors, count, job.inputs.dim(), job.dtype, self._device)
        if not self._outputs:
            self._make_outputs(tensors)
        if [output.shape for output in self._outputs] != [tensor.shape[1:] for tensor in tensors]:
            raise UserError(
                f"predictor: expected outputs of shapes {[tuple(output.shape) for output in self._outputs]} for each window, as in the first batch, "
                f"got {[tuple(tensor.shape[1:]) for tensor in tensors]}"
            )
        if self._weights is None:
            self._weights = self._scaled(self._weight)
        for output, tensor, weight in zip(self._outputs, tensors, self._weights, strict=True):
            output.add(self._places[low:high], tensor, None if job.has_equal_weights else weight)
        return keys

    def _read(self, gather: Gather, low: int, high: int, rows: int, memory: torch.Tensor | None) -> torch.Tensor:
        source = gather.source
        if memory is not None and source.device == memory.device:
            out = memory[:rows] if rows < len(memory) else memory
        else:
            shape = (rows, source.shape[1], *self._job.grid.roi_size)
            out = torch.empty(shape, dtype=source.dtype, device=source.device)
        gather.read(low, high, out)
        return out if out.device == self._device else out.to(self._device)

    def _slices(self, low: int, high: int, rows: int) -> list[list[slice]]:
        """Each window as MONAI describes it: the image, all channels, and a slice in each dimension."""
        places = self._places[low:high]
        places += [places[-1]] * (rows - len(places))
        roi = self._job.grid.roi_size
        return [
            [slice(image, image + 1), slice(None), *(slice(at, at + size) for at, size in zip(point, roi, strict=True))] for image, *point in places
        ]

    def _given_weight(self) -> torch.Tensor:
        """(*roi) or (1, 1, *roi): the weights before process_fn."""
        job = self._job
        if job.roi_weight_map is not None:
            return job.roi_weight_map.to(self._device, job.dtype)
        return importance_map(job.grid.roi_size, job.mode, job.sigma_scale, self._device, job.dtype)

    def _process(self, tensors: list[torch.Tensor], windows: torch.Tensor) -> list[torch.Tensor]:
        """process_fn's outputs; its weights become those of this batch."""
        job = self._job
        assert job.process_fn is not None
        returned, weight = job.process_fn(tuple(tensors), windows, self._map)
        if not isinstance(weight, torch.Tensor):
            raise UserError(f"process_fn: expected it to return (outputs, importance map), got {type(weight).__name__} for the map")
        self._weight, self._weights = weight.to(self._device, job.dtype), None
        if not job.first_weights.done() and all(low == 0 for low, _ in (self._box.images, *self._box.layers)):
            first = self._weight.clone()  # process_fn may write to what it returned
            job.first_weights.set_result(Result(first, next(iter(ready_events(first).values()), None)))
        return flatten(returned)[1]

    def _finish(self) -> list[Part]:
        # A weight is scaled from those of the outputs before it.
        sizes = [output.window for output in self._outputs]
        return [
            output.finish(weight, tuple(sizes[: index + 1]))
            for index, (output, weight) in enumerate(zip(self._outputs, self._count_weights(), strict=True))
        ]

    def _count_weights(self) -> list[torch.Tensor]:
        """For each output, the weights whose sum it is divided by."""
        return self._scaled(self._weight if self._job.process_fn is None else self._job.first_weights.result().wait().to(self._device))

    def _scaled(self, weight: torch.Tensor) -> list[torch.Tensor]:
        """``weight`` at the resolution of each output: (1, 1, *window). Each is scaled from the one before, as MONAI does."""
        job = self._job
        roi = job.grid.roi_size
        own = weight[None, None] if weight.dim() == len(roi) else weight
        try:
            own = own.expand(1, 1, *roi)
        except RuntimeError:
            raise UserError(f"importance map: expected a shape of {roi} or {(1, 1, *roi)}, got {tuple(weight.shape)}") from None
        scaled, last = [], own
        for output in self._outputs:
            if output.window != roi:
                last = last.new_ones(1, 1, *output.window) if job.has_equal_weights else F.interpolate(last, output.window, mode="nearest-exact")
            scaled.append(last if output.window != roi else own)
        return scaled

    def _make_outputs(self, tensors: Sequence[torch.Tensor]) -> None:
        job = self._job
        job.output_shapes[:] = [tensor.shape[1:] for tensor in tensors]
        self._check_room(job.output_shapes)
        self._outputs = [_Output(job, self._box, self._region, shape) for shape in job.output_shapes]
        for output in self._outputs:
            output.allocate(self._device)

    def _check_room(self, shapes: Sequence[torch.Size]) -> None:
        """Raises DoesNotFit where the outputs' sums over the box do not (as far as their shapes are known), and the box can be halved."""
        needed = sum(_Output(self._job, self._box, self._region, shape).size_bytes for shape in shapes)
        if needed > usable_bytes(self._device) and self._box.halves() is not None:
            raise DoesNotFit(f"{needed} bytes of outputs")


class _Output:
    """One output over the box, at its own resolution. ``shape``: (channels, *window)."""

    def __init__(self, job: Job, box: Box, region: Sequence[tuple[int, int]], shape: torch.Size) -> None:
        self._job, self._box = job, box
        grid = job.grid
        self.shape = shape
        self.window = tuple(shape[1:])
        self._scales = [size / float(roi) for size, roi in zip(self.window, grid.roi_size, strict=True)]
        self._check_places()
        self._region = [(int(low * scale), int(high * scale)) for (low, high), scale in zip(region, self._scales, strict=True)]
        self._full_size = tuple(int(size * scale) for size, scale in zip(grid.image_size, self._scales, strict=True))
        self._shape = (box.images[1] - box.images[0], shape[0], *(high - low for low, high in self._region))

    @property
    def size_bytes(self) -> int:
        """The sums and the reciprocal counts."""
        count = torch.Size(self._shape)
        return (count.numel() + count[2:].numel()) * self._job.dtype.itemsize

    def allocate(self, device: torch.device) -> None:
        self._sums = Accumulator(self._shape, self._job.dtype, device)

    def add(self, places: Sequence[Place], windows: torch.Tensor, weight: torch.Tensor | None) -> None:
        begin = (self._box.images[0], *(low for low, _ in self._region))
        scales = (1.0, *self._scales)
        scaled = [tuple(int(at * scale) - low for at, scale, low in zip(place, scales, begin, strict=True)) for place in places]
        self._sums.add(scaled, windows, weight)

    def finish(self, weight: torch.Tensor, scaled_by: tuple[Sizes, ...]) -> Part:
        """The sums, divided by the sum of ``weight`` (1, 1, *window) over all windows at each voxel, in place.

        Args:
            scaled_by: the window sizes that ``weight`` was scaled to, one after another; its own last.
        """
        job, total = self._job, self._sums.total
        starts = [tuple(int(start * scale) for start in starts) for starts, scale in zip(job.grid.starts, self._scales, strict=True)]
        if job.has_computed_weights:
            key = ("counts", job.grid, scaled_by, job.mode, job.sigma_scale, tuple(self._region), total.device, total.dtype)
            counts = CACHE.get(key, lambda: reciprocal_counts(weight, starts, self._region))
        else:
            counts = reciprocal_counts(weight, starts, self._region)
        total.mul_(counts)
        return Part(total, tuple(low for low, _ in self._region), self._full_size)

    def _check_places(self) -> None:
        for dim, (starts, roi, size, scale) in enumerate(zip(self._job.grid.starts, self._job.grid.roi_size, self.window, self._scales, strict=True)):
            for start in starts:
                rounded = int((start + roi) * scale) - int(start * scale)
                if rounded != size:
                    raise UserError(
                        f"predictor: dimension {dim} of an output's windows is {size}, of the inputs' {roi}: the window at {start} has {rounded} "
                        "voxels of the output, as its ends are rounded. Choose roi_size and overlap so that roi_size, the steps of roi_size * "
                        "(1 - overlap) and the start of the last window are whole numbers at the output's resolution"
                    )
