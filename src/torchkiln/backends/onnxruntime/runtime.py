"""runtime: an ONNX graph as a Runner. Inputs, outputs and weights are torch's memory, never copied where shapes are fixed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...engine.artifact import Artifact
from ...errors import CorruptEngineFile, TargetMismatch
from ..call_plan import CallPlan
from ..contract import Runner
from ..onnx_export import WEIGHT_PREFIX
from .library import import_onnxruntime

#: ONNX Runtime's name of a tensor type -> torch dtype, and the number that onnx has for it.
DTYPES: dict[str, tuple[torch.dtype, int]] = {
    "tensor(float)": (torch.float32, 1),
    "tensor(uint8)": (torch.uint8, 2),
    "tensor(int8)": (torch.int8, 3),
    "tensor(int16)": (torch.int16, 5),
    "tensor(int32)": (torch.int32, 6),
    "tensor(int64)": (torch.int64, 7),
    "tensor(bool)": (torch.bool, 9),
    "tensor(float16)": (torch.float16, 10),
    "tensor(double)": (torch.float64, 11),
    "tensor(bfloat16)": (torch.bfloat16, 16),
}
#: Most combinations of input shapes whose output shapes are remembered.
_REMEMBERED_SHAPES = 256


def load(artifact: Artifact, device: torch.device, num_threads: int | None) -> Runner:
    """Raises TargetMismatch when this ONNX Runtime cannot run the graph, CorruptEngineFile for metadata that makes no sense, MissingPackage."""
    plan = CallPlan.from_json(artifact.metadata.get("call_plan"))
    session = Session(artifact, num_threads, spin=artifact.metadata.get("spin") is True)
    plan.check("onnxruntime segment", session.input_count, session.output_count, artifact.tensors)
    return plan.wrap(session, artifact.tensors)


class Session:
    """Calls an ONNX graph. Each concurrent call has an IOBinding of its own, kept for later calls.

    ``spin``: threads wait for their next part of the work by spinning while a call runs. That is faster for graphs of many small operators
    on an idle machine, and slower on a busy one.
    """

    def __init__(self, artifact: Artifact, num_threads: int | None, *, spin: bool) -> None:
        self._session, self._weights = _open(artifact, num_threads, spin)
        outputs = self._session.get_outputs()
        for port in (*self._session.get_inputs(), *outputs):
            if port.type not in DTYPES:
                raise CorruptEngineFile(f"onnxruntime segment: {port.name}: expected a tensor of a type torch has, got {port.type}")
        self._inputs = [(port.name, *DTYPES[port.type]) for port in self._session.get_inputs()]
        self._outputs = [(port.name, *DTYPES[port.type]) for port in outputs]
        static = all(isinstance(size, int) for port in outputs for size in port.shape)
        self._static_shapes = [tuple(port.shape) for port in outputs] if static else None
        self._shapes: dict[tuple[torch.Size, ...], list[tuple[int, ...]]] = {}
        self._idle: deque[Any] = deque()

    @property
    def input_count(self) -> int:
        return len(self._inputs)

    @property
    def output_count(self) -> int:
        return len(self._outputs)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        try:
            binding = self._idle.pop()
        except IndexError:
            binding = self._session.io_binding()
        held = []  # contiguous copies must outlive the call
        for (name, dtype, onnx_type), value in zip(self._inputs, inputs, strict=True):
            if value.dtype is not dtype:
                # The library would read the memory as the graph's own type, past its end.
                raise CorruptEngineFile(f"onnxruntime segment: input {name}: the graph takes {dtype}, the engine passes {value.dtype}")
            value = value.detach().contiguous()
            held.append(value)
            binding.bind_input(name, "cpu", 0, onnx_type, value.shape, value.data_ptr())
        shapes = self._static_shapes or self._shapes.get(tuple(value.shape for value in inputs))
        outputs = []
        if shapes is not None:
            for (name, dtype, onnx_type), shape in zip(self._outputs, shapes, strict=True):
                output = torch.empty(shape, dtype=dtype)
                binding.bind_output(name, "cpu", 0, onnx_type, shape, output.data_ptr())
                outputs.append(output)
            self._session.run_with_iobinding(binding)
        else:
            for name, _, _ in self._outputs:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            outputs = [_copy(value, dtype) for value, (_, dtype, _) in zip(binding.get_outputs(), self._outputs, strict=True)]
            if len(self._shapes) >= _REMEMBERED_SHAPES:
                self._shapes.clear()
            # Output shapes depend on nothing but the input shapes: operators for which they would are not taken.
            self._shapes[tuple(value.shape for value in inputs)] = [tuple(output.shape) for output in outputs]
        # A kept binding points at memory that may be gone, until the next call binds again. One whose call failed is not kept.
        self._idle.append(binding)
        return outputs


def _copy(value: Any, dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.bfloat16:  # numpy has no bfloat16
        return torch.from_dlpack(value._ortvalue.to_dlpack()).clone()
    return torch.from_numpy(np.array(value.numpy(), copy=True))


def _open(artifact: Artifact, num_threads: int | None, spin: bool) -> tuple[Any, list[Any]]:
    """The InferenceSession, and the weights it refers to."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # warnings about its own optimizations are nothing a user can act on
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    # Threads that go on spinning after a call take the cores from whatever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Not session.set_denormal_as_zero: it leaves the caller's own thread flushing subnormal numbers to zero, in all code.
    names = [name for name in artifact.tensors if name.startswith(WEIGHT_PREFIX)]
    weights = [_value(artifact.tensors[name]) for name in names]
    if names:
        # The first gives the optimizer the values; the second makes the kernels that use a weight as it is use this memory, not a copy.
        options.add_external_initializers(names, weights)
        for name, weight in zip(names, weights, strict=True):
            options.add_initializer(name, weight)
    try:
        return ort.InferenceSession(artifact.payload, options, providers=["CPUExecutionProvider"]), [weights, artifact.tensors]
    except Exception as error:
        # onnxruntime's exceptions share no base class but Exception; whichever it is, this graph cannot be run here.
        built = artifact.metadata.get("onnxruntime", "unknown")
        raise TargetMismatch(
            f"onnxruntime {ort.__version__} cannot load a segment built for onnxruntime {built}: {error}. "
            "Build the engine again on this machine, or install that version."
        ) from error


def _value(tensor: torch.Tensor) -> Any:
    """An OrtValue over the tensor's memory."""
    ort = import_onnxruntime()
    if tensor.dtype is torch.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.view(torch.int16).numpy(), 16)
    if not tensor.is_contiguous():
        raise CorruptEngineFile("onnxruntime segment: a weight is not contiguous")
    return ort.OrtValue.ortvalue_from_numpy(tensor.numpy())
