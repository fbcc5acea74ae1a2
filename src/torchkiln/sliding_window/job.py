"""Job: what one call of sliding_window_inference was asked for, read and checked."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from ..pool.replica import Result
from ..progress import progress
from .grid import Grid
from .predictor import Batching


@dataclass
class Job:
    """Attributes:
    inputs: (images, channels, *space), padded to at least a window.
    condition: another tensor of the same images, whose windows are passed along; or None.
    grid: where the windows are.
    args, kwargs: further arguments of the predictor.
    with_coord: whether the predictor is given each window's slices.
    process_fn: called with outputs, windows and importance map of each batch; or None.
    mode, sigma_scale: of the importance map.
    roi_weight_map: in place of a computed one; or None.
    dtype: that windows are summed in.
    only_first: whether further outputs of the predictor are left out.
    batching: in what batches.
    ticks: who is told of the progress.
    """

    inputs: torch.Tensor
    condition: torch.Tensor | None
    grid: Grid
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    with_coord: bool
    process_fn: Callable[..., Any] | None
    mode: str
    sigma_scale: tuple[float, ...]
    roi_weight_map: torch.Tensor | None
    dtype: torch.dtype
    only_first: bool
    batching: Batching
    ticks: Ticks
    #: (channels, *window) of each output, once a batch has shown them.
    output_shapes: list[torch.Size] = field(default_factory=list)
    #: The weights of the first batch, which all are divided by, where process_fn may change them.
    first_weights: Future[Result] = field(default_factory=Future)

    @property
    def has_equal_weights(self) -> bool:
        """Whether every voxel of every window counts the same."""
        return self.mode == "constant" and self.roi_weight_map is None and self.process_fn is None

    @property
    def has_computed_weights(self) -> bool:
        """Whether the weights follow from sizes and options, so that what is derived from them may be remembered."""
        return self.roi_weight_map is None and self.process_fn is None


class Ticks:
    """Counts windows, from several threads, and tells who is watching."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._lock = threading.Lock()
        # Whoever watches the thread that asks is told of what others do for it.
        self._context = contextvars.copy_context()

    def add(self, windows: int) -> None:
        """``windows`` more are done; fewer, where they have to be done again."""
        with self._lock:
            self._done += windows
            self._context.run(progress, "windows", self._done, self._total)
