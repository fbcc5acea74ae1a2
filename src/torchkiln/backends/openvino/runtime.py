"""runtime: an OpenVINO artifact as a Runner. Inputs and outputs are torch's memory, never copied where shapes are fixed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from ...dtypes import parse_precision
from ...engine.artifact import Artifact
from ...errors import CorruptEngineFile, TargetMismatch
from ..call_plan import CallPlan
from ..contract import Runner
from .library import core, import_openvino
from .precision import OPENVINO_TYPES, read_precision

#: OpenVINO's name of a type -> torch dtype.
DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "boolean": torch.bool,
}
TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: The plugin properties a build may set beside the hints, and their values (see tune.py).
TUNED_PROPERTIES = (("TBB_PARTITIONER", "AUTO"),)
#: Whether kernels that read weights in 8 or 4 bits round their activations to int8, by groups of so many: not unless the build was allowed to.
ROUND_ACTIVATIONS = ("DYNAMIC_QUANTIZATION_GROUP_SIZE", 32)
#: Most combinations of input shapes whose output shapes are remembered.
_REMEMBERED_SHAPES = 256


def load(artifact: Artifact, device: torch.device, num_threads: int | None) -> Runner:
    """Raises TargetMismatch when this OpenVINO or CPU cannot run it as built, CorruptEngineFile for metadata that makes no sense."""
    plan = CallPlan.from_json(artifact.metadata.get("call_plan"))
    precision = str(artifact.metadata.get("precision"))
    compiled = compile_ir(artifact, precision, num_threads, tuned_properties(artifact))
    plan.check("openvino segment", len(compiled.inputs), len(compiled.outputs), artifact.tensors)
    return plan.wrap(Session(compiled, artifact.tensors.get("weights")), artifact.tensors)


def tuned_properties(artifact: Artifact) -> dict[str, Any]:
    """What the build found best. Only the properties it chooses among: others (CACHE_DIR, say) would let a file write to disk."""
    properties = artifact.metadata.get("properties") or {}
    if not isinstance(properties, dict) or any(item not in (*TUNED_PROPERTIES, ROUND_ACTIVATIONS) for item in properties.items()):
        raise CorruptEngineFile(f"openvino segment: expected properties among {[*TUNED_PROPERTIES, ROUND_ACTIVATIONS]}, got {properties!r}")
    return properties


def compile_ir(artifact: Artifact, precision: str, num_threads: int | None, properties: dict[str, Any]) -> Any:
    """The artifact's IR as an ``openvino.CompiledModel``. Raises TargetMismatch.

    ``properties`` are OpenVINO's own, as found best when the engine was built.
    """
    ov = import_openvino()
    weights = artifact.tensors.get("weights")
    # The IR's constants are views of this memory: nothing is copied until the plugin packs them for its kernels.
    memory = ov.Tensor(weights.numpy(), shared_memory=True) if weights is not None else ov.Tensor(np.empty(0, np.uint8))
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[parse_precision(precision)],
        "INFERENCE_NUM_THREADS": num_threads or torch.get_num_threads(),
        **exact_activations(),
        # Not ENABLE_CPU_PINNING=False: beside other thread pools in the process, unpinned threads cost 7% (docs/backends.md).
        # Not CPU_DENORMALS_OPTIMIZATION: it leaves the caller's own thread flushing subnormal numbers to zero, in all code, for good.
    }
    try:
        compiled = core().compile_model(core().read_model(artifact.payload, memory), "CPU", {**hints, **properties})
    except RuntimeError as error:
        built = artifact.metadata.get("openvino", "unknown")
        raise TargetMismatch(
            f"openvino {ov.__version__} cannot load a segment built by openvino {built}: {last_line(error)}. "
            "Build the engine again on this machine, or install that version."
        ) from error
    real = read_precision(compiled)
    if real != precision:
        raise TargetMismatch(
            f"the segment was built and checked in {precision}, which OpenVINO on this CPU computes as {real}. Build the engine again here."
        )
    return compiled


@cache
def exact_activations() -> dict[str, int]:
    """The property that turns rounding of activations off, which the plugin does by itself on some CPUs; nothing where it knows none."""
    name, _ = ROUND_ACTIVATIONS
    return {name: 0} if name in core().get_property("CPU", "SUPPORTED_PROPERTIES") else {}


def last_line(error: BaseException) -> str:
    """The line of one of OpenVINO's long messages that says what went wrong: the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class Session:
    """Calls a compiled model. Each concurrent call has an InferRequest of its own, kept for later calls."""

    def __init__(self, compiled: Any, weights: torch.Tensor | None) -> None:
        ov = import_openvino()
        self._tensor_type, self._bf16 = ov.Tensor, ov.Type.bf16
        self._compiled = compiled
        self._weights = weights  # the compiled model's constants are views of it
        self._idle: deque[Any] = deque()
        self._dtypes = [DTYPES[port.get_element_type().to_string()] for port in compiled.outputs]
        static = all(port.get_partial_shape().is_static for port in compiled.outputs)
        self._static_shapes = [tuple(port.get_shape()) for port in compiled.outputs] if static else None
        self._shapes: dict[tuple[torch.Size, ...], list[tuple[int, ...]]] = {}

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        shapes = self._static_shapes or self._shapes.get(tuple(value.shape for value in inputs))
        if shapes is None:
            return self._first_call(inputs)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        held = self._bind(request, inputs)
        outputs = []
        for index, shape in enumerate(shapes):
            output = torch.empty(shape, dtype=self._dtypes[index])
            request.set_output_tensor(index, self._share(output))
            outputs.append(output)
        request.infer(share_outputs=True)  # without share_outputs every output is copied once more
        del held
        # A kept request still points at this call's inputs and outputs, and does not keep them alive: the next call binds others before
        # it runs. A request whose call failed is not kept.
        self._idle.append(request)
        return outputs

    def _first_call(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """A call at input shapes not seen before: the library allocates, and its outputs' shapes are remembered (they depend on nothing else)."""
        request = self._compiled.create_infer_request()
        held = self._bind(request, inputs)
        request.infer(share_outputs=True)
        del held
        outputs = []
        for index, dtype in enumerate(self._dtypes):
            tensor = request.get_output_tensor(index)
            output = torch.empty(tuple(tensor.shape), dtype=dtype)
            if output.numel():
                tensor.copy_to(self._share(output))
            outputs.append(output)
        if len(self._shapes) >= _REMEMBERED_SHAPES:
            self._shapes.clear()
        self._shapes[tuple(value.shape for value in inputs)] = [tuple(output.shape) for output in outputs]
        return outputs

    def _bind(self, request: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Give the request the inputs' memory. What is returned must live as long as the call: contiguous copies are nobody else's."""
        held = []
        for index, value in enumerate(inputs):
            value = value.detach().contiguous()
            held.append(value)
            request.set_input_tensor(index, self._share(value))
        return held

    def _share(self, value: torch.Tensor) -> Any:
        """An ``openvino.Tensor`` over the memory of a contiguous tensor. A request that is given it does not keep the memory alive."""
        if value.dtype is torch.bfloat16:  # numpy has no bfloat16
            return self._tensor_type(value.view(torch.int16).numpy(), list(value.shape), self._bf16)
        return self._tensor_type(value.numpy(), shared_memory=True)
