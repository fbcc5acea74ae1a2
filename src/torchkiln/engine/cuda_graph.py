"""cuda_graph: replay a call as one CUDA graph per combination of input shapes, so that the CPU launches once and not once per kernel.

Source: the CUDA graphs section of PyTorch's CUDA notes (warm-up on a side stream, capture, copy into static inputs, replay).
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from ..log import STEPS, log

if TYPE_CHECKING:
    from ..backends.contract import Runner

#: Before capture, so that nothing is loaded, tuned or allocated for the first time during it.
WARM_UP_CALLS = 3

Key = tuple[torch.Size, ...]


@dataclass
class _Captured:
    """A graph with the memory it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    outputs: list[Any]
    tensors: list[torch.Tensor] = field(init=False)
    """Those of ``outputs`` that are tensors. The others are sizes: fixed by the input shapes."""

    def __post_init__(self) -> None:
        self.tensors = [o for o in self.outputs if isinstance(o, torch.Tensor)]


class CudaGraphRunner:
    """A Runner that replays ``call``. Safe under concurrent calls from several threads, each on a stream of its own.

    The first call with new input shapes captures (that call takes seconds, not microseconds). Calls run one after another on the GPU, whatever
    their streams: they share the graph's memory. The graphs of one runner share one memory pool.

    ``call`` must launch the same kernels for the same shapes, on the current stream, and not wait for the GPU. Where capture fails, ``note`` says
    why and calls go to ``call`` as they are.

    Args:
        call: takes tensors on ``device`` and returns tensors on it (or integers, for sizes).
        device: a CUDA device with an index.
        static_outputs: return the graph's own output tensors, which the next call overwrites, instead of fresh copies. For a single caller that is
            done with the outputs before it calls again.
        max_shapes: most combinations of input shapes to keep; the one unused for longest goes first.
    """

    def __init__(self, call: Runner, device: torch.device, *, static_outputs: bool = False, max_shapes: int = 16) -> None:
        if device.type != "cuda" or device.index is None:
            raise UserError(f"CudaGraphRunner: expected a CUDA device with an index, got {device}")
        if max_shapes < 1:
            raise UserError(f"CudaGraphRunner: max_shapes: expected at least 1, got {max_shapes}")
        self.note = ""
        self._call = call
        self._device = device
        self._static_outputs = static_outputs
        self._max_shapes = max_shapes
        self._lock = threading.Lock()
        self._captured: OrderedDict[Key, _Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        #: Recorded at the end of each call's work: the next call, perhaps on another stream, waits for it on the GPU.
        self._done = torch.cuda.Event()

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
        if torch.cuda.current_device() != self._device.index:
            with torch.cuda.device(self._device):
                return self(inputs)
        if torch.cuda.is_current_stream_capturing():
            # The caller is capturing a graph of its own: become a part of it.
            return self._call(inputs)
        key = tuple([value.shape for value in inputs])
        with torch.no_grad():
            with self._lock:
                captured = self._captured.get(key) or self._capture(key, inputs)
                if captured is not None:
                    return self._replay(key, captured, inputs)
            return self._call(inputs)

    def input_buffers(self, *shapes: Sequence[int]) -> list[torch.Tensor]:
        """The graph's own input tensors for these input shapes. Written in place and passed to a call, they save the copy.

        For a single caller: another caller's inputs would overwrite them. Raises UserError when no call with these shapes was captured (yet).
        """
        key = tuple(torch.Size(shape) for shape in shapes)
        with self._lock:
            if key not in self._captured:
                known = "; ".join(str([tuple(s) for s in k]) for k in self._captured) or "none"
                raise UserError(
                    f"input_buffers: no graph for input shapes {[tuple(s) for s in key]}: call once with them. Captured: {known}. {self.note}"
                )
            return list(self._captured[key].inputs)

    @property
    def captured_shapes(self) -> list[Key]:
        """The input shapes of the graphs that are held, the one unused for longest first."""
        with self._lock:
            return list(self._captured)

    def _replay(self, key: Key, captured: _Captured, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
        self._captured.move_to_end(key)
        stream = torch.cuda.current_stream()
        stream.wait_event(self._done)
        if any([value is not own for value, own in zip(inputs, captured.inputs, strict=True)]):  # noqa: C419 (a list is faster)
            torch._foreach_copy_(captured.inputs, list(inputs))
        captured.graph.replay()
        outputs = captured.outputs if self._static_outputs else _fresh(captured)
        self._done.record(stream)
        return outputs

    def _capture(self, key: Key, inputs: Sequence[torch.Tensor]) -> _Captured | None:
        """A graph for ``inputs``' shapes; None, with the reason in ``note``, when there cannot be one."""
        if self.note:
            return None
        if len(self._captured) >= self._max_shapes:
            self._done.synchronize()  # its memory may still be in use
            self._captured.popitem(last=False)
        caller = torch.cuda.current_stream()
        side = torch.cuda.Stream(self._device)
        side.wait_stream(caller)
        with torch.cuda.stream(side):
            own = [torch.empty(v.shape, dtype=v.dtype, device=self._device).copy_(v) for v in inputs]
            for _ in range(WARM_UP_CALLS):
                self._call(own)
        side.synchronize()
        try:
            captured = self._record(own, side)
        except RuntimeError as error:
            # Not a fault of the model: it ran, in warm-up. It does something a graph cannot hold, or memory is short.
            self.note = f"no CUDA graph: capture failed: {str(error).strip().splitlines()[0]}"
            log(STEPS, "%s", self.note)
            captured = None
        caller.wait_stream(side)
        if captured is not None:
            self._captured[key] = captured
        return captured

    def _record(self, own: list[torch.Tensor], side: torch.cuda.Stream) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        # cuBLAS keeps a workspace per stream, and torch's streams come from a small pool: another engine's graph would use the same one at the same
        # time. Cleared, it is allocated during capture, in this runner's pool.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            # thread_local: what other threads do with the GPU meanwhile does not spoil the capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                outputs = list(self._call(own))
        finally:
            torch._C._cuda_clearCublasWorkspaces()
        for index, output in enumerate(outputs):
            if isinstance(output, torch.Tensor) and output.device != self._device:
                raise RuntimeError(f"output {index} is on {output.device}, which a graph of {self._device} does not write")
        return _Captured(graph, own, outputs)

    def __del__(self) -> None:
        # The memory goes back to the allocator now, and the last replay may still be using it.
        if getattr(self, "_captured", None) and not sys.is_finalizing():
            self._done.synchronize()


def _fresh(captured: _Captured) -> Sequence[Any]:
    tensors = captured.tensors
    if len(tensors) == 1:
        copies = [tensors[0].clone()]
    else:
        copies = [torch.empty_like(tensor) for tensor in tensors]
        if copies:
            torch._foreach_copy_(copies, tensors)
    if len(tensors) == len(captured.outputs):
        return copies
    copied = iter(copies)
    return [next(copied) if isinstance(output, torch.Tensor) else output for output in captured.outputs]
