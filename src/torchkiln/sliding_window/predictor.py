"""predictor: in what batches it is called, where it runs, and which memory its windows are written to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..engine.engine import Engine
from ..errors import UserError
from ..log import SUMMARY, log
from ..pool.pool import Pool


@dataclass(frozen=True)
class Batching:
    """How many windows a call gets.

    Attributes:
        size: of every batch but the last one of a box.
        least: of any batch.
        fill: whether the last one is filled up to ``size``, as another size would be slow the first time (a CUDA graph, a compilation) or is refused.
    """

    size: int
    least: int = 1
    fill: bool = False

    def rows(self, count: int) -> int:
        """The windows to call with, of which ``count`` are wanted."""
        return self.size if self.fill else max(count, self.least)


def plan_batches(predictor: Any, sw_batch_size: int, most: int) -> Batching:
    """Batches of ``sw_batch_size``, or the nearest size that an engine takes: its inputs say which.

    Args:
        most: windows in the largest box. An engine gets no larger batch than that, except for the one it has a CUDA graph of.
    """
    engine = predictor.replicas[0].engine if isinstance(predictor, Pool) else predictor
    if not isinstance(engine, Engine):
        # torch.compile builds again for a batch of another size.
        return Batching(sw_batch_size, fill=hasattr(predictor, "_orig_mod"))
    spec = engine.inputs[0]
    if not spec.opt_shape:
        raise UserError("sliding_window_inference: predictor: the engine's first input is a scalar, expected a batch of windows")
    low, opt, high = spec.min_shape[0], spec.opt_shape[0], spec.max_shape[0]
    size = min(max(sw_batch_size, low), high)
    if not low <= sw_batch_size <= high:
        log(SUMMARY, "sliding windows in batches of %d, not %d: the engine takes %s", size, sw_batch_size, low if low == high else f"{low} to {high}")
    on_gpu = engine.device.type == "cuda"
    needed = max(min(size, most), low)
    if on_gpu and needed <= opt <= size:
        needed = opt
    return Batching(needed, max(low, 1), fill=low == high or on_gpu)


def find_device(predictor: Any, sw_device: torch.device, is_given: bool) -> torch.device:
    """Where windows are: ``sw_device`` where it is given, else an engine's own device. Raises UserError where they disagree, and for a pool
    that is closed."""
    if not isinstance(predictor, (Engine, Pool)):
        return sw_device
    if isinstance(predictor, Pool) and not predictor.replicas:
        raise UserError("sliding_window_inference: predictor: the pool is closed: make another with torchkiln.replicate(engine)")
    devices = list(dict.fromkeys(predictor.devices if isinstance(predictor, Pool) else (predictor.device,)))
    if is_given and devices != [sw_device]:
        raise UserError(f"sliding_window_inference: sw_device: {sw_device} was asked for, but predictor runs on {', '.join(map(str, devices))}")
    return devices[0]


@contextmanager
def window_memory(predictor: Any, shape: Sequence[int], dtype: torch.dtype, is_own: bool) -> Iterator[torch.Tensor | None]:
    """Memory of ``shape`` that an engine reads every batch from, for windows to be written to; None where each batch needs memory of its own.

    On a GPU, an engine that nobody else calls (``is_own``: a pool's; or one with ``static_outputs``) gives the input of its CUDA graph. Other
    engines read one buffer of ours. What is not an engine might keep the windows.
    """
    if not isinstance(predictor, Engine):
        yield None
        return
    buffer = _graph_input(predictor) if is_own or predictor.static_outputs else None
    if buffer is None or buffer.shape != torch.Size(shape) or buffer.dtype is not dtype:
        buffer = torch.empty(tuple(shape), dtype=dtype, device=predictor.device)
        yield buffer
        return
    before = predictor.static_outputs
    predictor.static_outputs = True
    try:
        yield buffer
    finally:
        predictor.static_outputs = before


def _graph_input(engine: Engine) -> torch.Tensor | None:
    if engine.device.type != "cuda":
        return None
    try:
        return engine.input_buffers[0]
    except UserError as error:  # no CUDA graph, or none for the opt shapes
        log(SUMMARY, "sliding windows: written to memory besides the engine's: %s", error)
        return None
