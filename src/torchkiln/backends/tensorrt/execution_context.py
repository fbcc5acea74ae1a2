"""execution_context: one IExecutionContext: its profile, its shapes, and the order of its calls on the GPU's streams.

Run on real hardware: none of it with TensorRT itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from ...errors import UserError
from .gpu import Gpu
from .plan_io import PlanIO, Port, Shape

#: TensorRT asks this of memory on the GPU. torch's allocator gives 512; a slice of a tensor may start anywhere.
ALIGNMENT_BYTES = 256
#: The handle of CUDA's legacy default stream.
DEFAULT_STREAM = 0


class ExecutionContext:
    """Runs calls one after another, each on the caller's current stream. One thread at a time.

    A context has one set of intermediate memory: where the stream changes between calls, the GPU waits for the call before. On the default stream
    TensorRT would make the CPU wait and TensorRT-RTX could not capture its CUDA graph: such calls run on a stream of the context's own, which the
    default stream joins before and after.

    What the caller passes and gets belongs to the caller's stream, as with any operator of torch: memory that torch's allocator takes back while
    the GPU still works is given out again in that stream's order only, and the context's own stream is joined to it. So nothing need be kept.
    """

    def __init__(self, raw: Any, io: PlanIO, gpu: Gpu, logger: Any, owners: object = None) -> None:
        """``raw``: the IExecutionContext. ``logger``: has the library's messages. ``owners``: what must outlive it."""
        self.raw = raw
        self._owners = owners
        self._logger = logger
        self._io = io
        self._gpu = gpu
        self._own_stream: torch.cuda.Stream | None = None
        self._last_stream: torch.cuda.Stream | None = None
        self._done = gpu.new_event()
        self._placeholder: torch.Tensor | None = None
        self._shapes: list[Shape] | None = None
        self._output_shapes: list[Shape] = []

    @property
    def shapes(self) -> list[Shape] | None:
        """The input shapes of the call before; None before the first."""
        return self._shapes

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Enqueue a call. ``inputs``: on the GPU, with the plan's dtypes, any strides. Returns before the GPU is done.

        Raises InputMismatch for shapes outside every profile, RuntimeError when TensorRT refuses.
        """
        caller = self._gpu.current_stream()
        given = [_laid_out(value) for value in inputs]
        stream = self._stream_for(caller)
        if self._last_stream is not None and self._last_stream != stream:
            stream.wait_event(self._done)
        self._set_shapes([tuple(value.shape) for value in given], stream)
        outputs = self._enqueue(given, stream)
        self._last_stream = stream
        self._done.record(stream)
        if stream is not caller:
            caller.wait_stream(stream)
        return outputs

    def run_captured(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Enqueue a call into the CUDA graph that the current stream is being captured into.

        The graph keeps this context's memory and state, so the context must not be used again. Raises UserError unless the last call had these
        shapes: what TensorRT does at the first call with new shapes cannot be captured.
        """
        shapes = [tuple(value.shape) for value in inputs]
        if self._shapes != shapes:
            raise UserError(
                f"tensorrt segment: a CUDA graph is being captured with input shapes {shapes}, the last call of this thread had {self._shapes}: "
                "call once with these shapes before capturing."
            )
        # No waiting for earlier calls: a capture begins when the GPU is idle (torch.cuda.graph synchronizes), and nothing outside may enter it.
        return self._enqueue([_laid_out(value) for value in inputs], self._gpu.current_stream())

    def _stream_for(self, caller: torch.cuda.Stream) -> torch.cuda.Stream:
        if caller.cuda_stream != DEFAULT_STREAM:
            return caller
        if self._own_stream is None:
            self._own_stream = self._gpu.new_stream()
        self._own_stream.wait_stream(caller)
        return self._own_stream

    def _set_shapes(self, shapes: list[Shape], stream: torch.cuda.Stream) -> None:
        if shapes == self._shapes:
            return
        profile = self._io.choose_profile(shapes)  # before anything is changed
        known, self._shapes = self._shapes, None
        if self.raw.active_optimization_profile != profile:
            if not self.raw.set_optimization_profile_async(profile, stream.cuda_stream):
                raise self._refusal(f"TensorRT refused optimization profile {profile}")
            known = None  # a change of profile forgets them
        for index, (port, shape) in enumerate(zip(self._io.inputs, shapes, strict=True)):
            if port.is_static or (known is not None and known[index] == shape):
                continue
            if not self.raw.set_input_shape(port.name, shape):
                raise self._refusal(f"TensorRT refused shape {shape} of input {port.name} in optimization profile {profile}")
        self._output_shapes = [port.shape for port in self._io.outputs] if self._io.is_static else self._infer_shapes(shapes)
        self._shapes = shapes

    def _infer_shapes(self, shapes: list[Shape]) -> list[Shape]:
        lacking = self.raw.infer_shapes()
        if lacking:
            raise self._refusal(f"TensorRT cannot tell the output shapes for input shapes {shapes}: it lacks {', '.join(lacking)}")
        inferred = [tuple(self.raw.get_tensor_shape(port.name)) for port in self._io.outputs]
        for port, shape in zip(self._io.outputs, inferred, strict=True):
            if any(size < 0 for size in shape):
                raise self._refusal(f"output {port.name}: its shape {shape} depends on the data, for which there is no memory plan")
        return inferred

    def _enqueue(self, given: list[torch.Tensor], stream: torch.cuda.Stream) -> list[torch.Tensor]:
        for port, value in zip(self._io.inputs, given, strict=True):
            self._set_address(port, value)
        outputs = []
        for port, shape in zip(self._io.outputs, self._output_shapes, strict=True):
            output = self._gpu.empty(shape, port.dtype)
            self._set_address(port, output)
            outputs.append(output)
        if not self.raw.execute_async_v3(stream.cuda_stream):
            raise self._refusal("TensorRT could not enqueue the call")
        return outputs

    def _set_address(self, port: Port, value: torch.Tensor) -> None:
        address = value.data_ptr()
        if not address:  # a tensor without elements has no memory, and TensorRT takes no null
            if self._placeholder is None:
                self._placeholder = self._gpu.empty((ALIGNMENT_BYTES,), torch.uint8)
            address = self._placeholder.data_ptr()
        if not self.raw.set_tensor_address(port.name, address):
            raise self._refusal(f"TensorRT refused the address of {port.name}")

    def _refusal(self, what: str) -> RuntimeError:
        """As torch has it for what fails on the GPU; a CUDA graph that fails to capture shows in the same way."""
        said = self._logger.errors()
        return RuntimeError(f"tensorrt segment: {what}{f': {said}' if said else ''}")

    def __del__(self) -> None:
        # Its memory goes back to the GPU now, and the last call may still be using it.
        if getattr(self, "_last_stream", None) is not None and not sys.is_finalizing():
            self._done.synchronize()


def _laid_out(value: torch.Tensor) -> torch.Tensor:
    """Contiguous, and aligned as TensorRT expects."""
    if not value.is_contiguous():
        return value.contiguous()
    return value.clone() if value.data_ptr() % ALIGNMENT_BYTES else value
