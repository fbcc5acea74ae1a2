"""cuda_graph: replay a call as one CUDA graph per combination of input shapes, so that the CPU launches once and not once per kernel."""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from ..log import STEPS, log
from .graph_buckets import batched_outputs, bucket_shapes, rows_of
from .graph_capture import CAPTURING, CaptureFailed, record, side_stream
from .graph_plan import Captured, Key, Plan
from .graph_pointers import NoPointers, library
from .graph_proof import prove, snapshot, written

if TYPE_CHECKING:
    from ..backends.contract import Runner

#: cudaStreamPerThread: one handle for a different stream in every thread.
_PER_THREAD = 2


class CudaGraphRunner:
    """A Runner that replays ``call``. Safe under concurrent calls from several threads, each on a stream of its own.

    The first call with new input shapes captures (that call takes seconds, not microseconds); ``prepare`` does so beforehand. A replay waits for
    nothing on the CPU. Calls run one after another on the GPU, whatever their streams: they share the graph's memory. The graphs of one runner
    share one memory pool.

    Kernels read a call's inputs and write its outputs where they are, as far as that was tried and is right (``graph_proof``); an input of other
    strides than contiguous or not aligned, and what was not found right, is copied into or out of the graph's own memory.

    ``call`` must launch the same kernels for the same shapes, on the current stream, and not wait for the GPU. Where capture fails, ``note`` says
    why and calls go to ``call`` as they are.

    Args:
        call: takes tensors on ``device`` and returns tensors on it (or integers, for sizes).
        device: a CUDA device with an index.
        static_outputs: return the graph's own output tensors, which the next call overwrites, instead of fresh ones. For a single caller that is
            done with the outputs before it calls again. May be set at any time.
        max_shapes: most combinations of input shapes to keep; the one unused for longest goes first. The prepared one is kept besides.
        batch_buckets: batch sizes to capture. Dimension 0 of every input must be the batch, and each row of an output may depend on the same row
            of the inputs alone: a batch of n runs as the first n rows of the smallest bucket that holds it. A larger batch than every bucket, or
            inputs whose sizes disagree, are captured as they are.
        rebind: False: copy all inputs and outputs.
    """

    def __init__(
        self,
        call: Runner,
        device: torch.device,
        *,
        static_outputs: bool = False,
        max_shapes: int = 16,
        batch_buckets: Sequence[int] = (),
        rebind: bool = True,
    ) -> None:
        if device.type != "cuda" or device.index is None:
            raise UserError(f"CudaGraphRunner: expected a CUDA device with an index, got {device}")
        if max_shapes < 1:
            raise UserError(f"CudaGraphRunner: max_shapes: expected at least 1, got {max_shapes}")
        self.note = ""
        self.static_outputs = static_outputs
        self._call = call
        self._device = device
        self._index = device.index
        self._buckets = sorted(set(batch_buckets))
        self._batched: list[bool] | None = None
        self._max_shapes = max(max_shapes, len(self._buckets))
        self._lock = threading.Lock()
        #: By the shapes of the inputs captured, the one unused for longest first; and by the shapes of a call's inputs.
        self._captured: OrderedDict[Key, Captured] = OrderedDict()
        self._plans: dict[Key, Plan] = {}
        self._prepared: Captured | None = None
        self._pool = torch.cuda.graph_pool_handle()
        self._rebind = rebind
        #: Storages of outputs that graphs write again and again, and whether a caller was given one.
        self._own_outputs: set[int] = set()
        self._lent = False
        #: Recorded at the end of each call's work: the next call waits for it on the GPU where it comes on another stream.
        self._done = torch.cuda.Event()
        self._stream: Any = None
        self._stream_handle = -1

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
        # torch._C: torch.cuda's functions of these names check first whether CUDA is initialized, a microsecond each time.
        if torch._C._cuda_getDevice() != self._index:
            with torch.cuda.device(self._device):
                return self(inputs)
        if torch._C._cuda_isCurrentStreamCapturing():
            # The caller is capturing a graph of its own: become a part of it.
            return self._call(inputs)
        key = tuple([value.shape for value in inputs])
        grad = torch.is_grad_enabled()
        if grad:
            torch._C._set_grad_enabled(False)  # torch.no_grad() without the object: a microsecond less
        try:
            with self._lock:
                plan = self._plans.get(key)
                if plan is not None:
                    return self._replay(plan, inputs)
            return self._first_call(key, inputs)
        finally:
            if grad:
                torch._C._set_grad_enabled(True)

    def prepare(self, inputs: Sequence[torch.Tensor]) -> None:
        """Capture for the shapes of ``inputs``, and keep that graph for good. Raises what ``call`` raises on them.

        Results do not depend on their values; an input of integers that are all alike is copied at every call.
        """
        key = tuple(value.shape for value in inputs)
        with torch.cuda.device(self._device), torch.no_grad(), CAPTURING, self._lock:
            plan = self._plan_for(key, inputs)
            self._prepared = plan.captured if plan else None

    def input_buffers(self, *shapes: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """The graph's own input tensors for these input shapes. Written in place and passed to a call, they are never copied.

        For a single caller: another call that copies its inputs overwrites them. Raises UserError when no call with these shapes was captured (yet).
        """
        key = tuple(torch.Size(shape) for shape in shapes)
        with self._lock:
            plan = self._plans.get(key)
            if plan is None:
                known = "; ".join(str([tuple(s) for s in k]) for k in self._plans) or "none"
                raise UserError(
                    f"input_buffers: no graph for input shapes {[tuple(s) for s in key]}: call once with them. Captured: {known}. {self.note}"
                )
            return plan.inputs

    @property
    def captured_shapes(self) -> list[Key]:
        """The input shapes of the graphs that are held, the one unused for longest first."""
        with self._lock:
            return list(self._captured)

    def _replay(self, plan: Plan, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
        handle = torch._C._cuda_getCurrentRawStream(self._index)
        if handle != self._stream_handle:
            self._stream = torch.cuda.current_stream()
            self._stream.wait_event(self._done)
            self._stream_handle = handle if handle != _PER_THREAD else -1
        if len(self._captured) > 1:
            self._captured.move_to_end(plan.captured.key)
        try:
            static = self.static_outputs
            if static:
                self._lent = True
            return plan.replay(inputs, static, self._own_outputs if self._lent else ())
        finally:
            self._done.record(self._stream)

    def _first_call(self, key: Key, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
        if not self.note:
            with CAPTURING, self._lock:
                plan = self._plan_for(key, inputs)
                if plan is not None:
                    return self._replay(plan, inputs)
        return self._call(inputs)

    def _plan_for(self, key: Key, inputs: Sequence[torch.Tensor]) -> Plan | None:
        """How to serve ``inputs``' shapes, captured where it has to be; None, with the reason in ``note``, when there cannot be a graph."""
        if key in self._plans or self.note:
            return self._plans.get(key)
        # Outside the caller's inference mode: torch refuses to write its tensors anywhere else.
        with torch.inference_mode(False), torch.no_grad():
            try:
                wide = bucket_shapes(key, self._bucket(key))
                plan = self._bucket_plan(key, wide, inputs) if wide else None
                if plan is None:
                    captured = self._captured.get(key) or self._capture(key, inputs)
                    plan = Plan(captured, captured.inputs, captured.outputs)
            except CaptureFailed as failure:
                self.note = f"no CUDA graph: capture failed: {failure}"
                log(STEPS, "%s", self.note)
                return None
        self._plans[key] = plan
        return plan

    def _bucket(self, key: Key) -> int:
        """The smallest bucket that holds the batch; 0 for none."""
        rows = rows_of(key)
        place = bisect_left(self._buckets, rows) if rows is not None else len(self._buckets)
        return self._buckets[place] if place < len(self._buckets) else 0

    def _bucket_plan(self, key: Key, wide: Key, inputs: Sequence[torch.Tensor]) -> Plan | None:
        """None, and no buckets from then on, when the outputs do not have the batch for dimension 0."""
        rows, bucket = key[0][0], wide[0][0]
        captured = self._captured.get(wide)
        if captured is None:
            captured = self._capture(wide, inputs)
            captured.rows = rows
        if self._batched is None:
            self._batched = batched_outputs(self._call, captured, bucket, self._buckets)
        if self._batched is None:
            log(STEPS, "no batch buckets: dimension 0 of the outputs is not the batch")
            self._buckets = []
            del self._captured[wide]
            return None
        if rows == bucket:
            return Plan(captured, captured.inputs, captured.outputs, rows)
        # A size is batched too: it is the batch itself.
        narrow = [value if not own else (value[:rows] if isinstance(value, torch.Tensor) else rows) for value, own in self._pairs(captured)]
        return Plan(captured, [own[:rows] for own in captured.inputs], narrow, rows)

    def _pairs(self, captured: Captured) -> list[tuple[Any, bool]]:
        assert self._batched is not None
        return list(zip(captured.outputs, self._batched, strict=True))

    def _capture(self, key: Key, inputs: Sequence[torch.Tensor]) -> Captured:
        """A graph for inputs of the shapes ``key``, which hold ``inputs`` in their first rows and zeros in the others."""
        self._make_room()
        own = []
        for shape, value in zip(key, inputs, strict=True):
            buffer = torch.empty(shape, dtype=value.dtype, device=self._device)
            (buffer if shape == value.shape else buffer.zero_()[: len(value)]).copy_(value)
            own.append(buffer)
        may_rebind, before = self._may_rebind(), []
        try:
            before = snapshot(own) if may_rebind else []
        except torch.OutOfMemoryError:
            may_rebind = False
            log(STEPS, "CUDA graph: inputs and outputs are copied: there is no memory to try anything else")
        graph, outputs = record(self._call, own, self._device, self._pool, keep_graph=may_rebind)
        captured = self._captured[key] = Captured(key, graph, own, outputs)
        self._own_outputs.update(value.untyped_storage().data_ptr() for value in captured.tensors)
        if may_rebind:
            self._free(captured, before)
        return captured

    def _may_rebind(self) -> bool:
        if not self._rebind:
            return False
        try:
            library()
        except NoPointers as error:
            log(STEPS, "CUDA graph: inputs and outputs are copied: %s", error)
            return False
        return True

    def _free(self, captured: Captured, before: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Find out which inputs and outputs may be anywhere in memory. ``before``: a snapshot of the inputs before the capture."""
        caller, side = torch.cuda.current_stream(), side_stream(self._device)
        side.wait_stream(caller)
        side.wait_event(self._done)  # another graph of the same memory may still run
        try:
            with torch.cuda.stream(side):
                is_written = written(captured.inputs, before)
                captured.set_pointers(*prove(captured.graph, captured.inputs, captured.tensors, is_written))
        except (NoPointers, RuntimeError) as error:
            captured.note = str(error)
            captured.graph.instantiate()
        finally:
            caller.wait_stream(side)
        log(STEPS, "CUDA graph: %s", f"copied at every call: {captured.note}" if captured.note else "inputs and outputs are used where they are")

    def _make_room(self) -> None:
        others = [key for key, captured in self._captured.items() if captured is not self._prepared]
        if len(others) < self._max_shapes:
            return
        self._done.synchronize()  # its memory may still be in use
        captured = self._captured.pop(others[0])
        self._own_outputs.difference_update(value.untyped_storage().data_ptr() for value in captured.tensors)
        self._plans = {key: plan for key, plan in self._plans.items() if plan.captured is not captured}

    def __del__(self) -> None:
        # The memory goes back to the allocator now, and the last replay may still be using it.
        if getattr(self, "_captured", None) and not sys.is_finalizing():
            self._done.synchronize()
