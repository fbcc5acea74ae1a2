"""ONNX Runtime on the model that torch's dynamo exporter writes."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...dtypes import precision_name
from ...errors import MissingPackage
from ..case import Case
from .contract import Refusal, Runner, refuse_missing


@dataclass(frozen=True)
class OnnxRuntime:
    """All graph optimizations, I/O bound once: inputs shared, outputs in buffers of its own. The CUDA provider when the device is CUDA."""

    name: str = "onnxruntime"
    slow_build: bool = False

    def refuse(self, case: Case, precision: torch.dtype) -> Refusal | None:
        for package in ("onnxruntime", "onnx", "onnxscript"):
            missing = refuse_missing(package, "onnx")
            if missing:
                return missing
        if case.device.type == "cpu":
            if precision != torch.float32:
                return Refusal("skipped", f"the CPU provider has no {precision_name(precision)} kernels: it would compute in fp32 between casts")
            return None
        if precision == torch.bfloat16:
            return Refusal("skipped", "its Python binding hands tensors over as numpy arrays, which have no bf16")
        if case.device.type != "cuda":
            return Refusal("skipped", f"no provider for {case.device.type} is supported here")
        if "CUDAExecutionProvider" not in _import_onnxruntime().get_available_providers():
            return Refusal("missing", "this onnxruntime has no CUDA provider: pip install onnxruntime-gpu")
        return None

    def build(self, case: Case, precision: torch.dtype) -> Runner:
        ort = _import_onnxruntime()
        input_sets = case.cast_inputs(precision)
        options = ort.SessionOptions()
        options.intra_op_num_threads = case.num_threads
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        cuda = case.device.type == "cuda"
        providers = [("CUDAExecutionProvider", {"device_id": case.device.index or 0})] if cuda else []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            _export(case.copy_model(precision), input_sets[0], path)
            session = ort.InferenceSession(path, options, providers=[*providers, "CPUExecutionProvider"])
        setup = f"{session.get_providers()[0]}, {case.num_threads} threads"
        if cuda:
            on_cuda = _CudaCall(session, case.device)
            return Runner(on_cuda, input_sets, on_cuda.tensors, setup, torch_stream=False, torch_memory=False)
        on_cpu = _CpuCall(session, ort, input_sets)
        return Runner(on_cpu, on_cpu.input_sets, on_cpu.tensors, setup, on_device=False)


class _CpuCall:
    """Run with one I/O binding for each input set; outputs land in arrays allocated once."""

    def __init__(self, session: Any, ort: Any, input_sets: list[tuple[torch.Tensor, ...]]) -> None:
        self._session = session
        self.input_sets: list[tuple[Any, ...]] = []
        names = [i.name for i in session.get_inputs()]
        arrays = [dict(zip(names, (t.contiguous().numpy() for t in inputs), strict=True)) for inputs in input_sets]
        outputs = [ort.OrtValue.ortvalue_from_numpy(value.copy()) for value in session.run(None, arrays[0])]
        self._outputs = outputs
        for feed in arrays:
            binding = session.io_binding()
            for name, array in feed.items():
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            for node, value in zip(session.get_outputs(), outputs, strict=True):
                binding.bind_ortvalue_output(node.name, value)
            # The binding keeps addresses, not owners: the arrays travel with it.
            self.input_sets.append((binding, feed))

    def __call__(self, binding: Any, _feed: Any) -> None:
        self._session.run_with_iobinding(binding)

    def tensors(self, _: None) -> list[torch.Tensor]:
        return [torch.from_numpy(value.numpy().copy()) for value in self._outputs]


class _CudaCall:
    """Bind torch's device memory directly; ONNX Runtime allocates the outputs on the device."""

    def __init__(self, session: Any, device: torch.device) -> None:
        self._session, self._index = session, device.index or 0
        self._bindings: dict[tuple[int, ...], Any] = {}

    def __call__(self, *inputs: torch.Tensor) -> Any:
        key = tuple(t.data_ptr() for t in inputs)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._bind(inputs)
        self._session.run_with_iobinding(binding)
        return binding

    def _bind(self, inputs: tuple[torch.Tensor, ...]) -> Any:
        binding = self._session.io_binding()
        for node, tensor in zip(self._session.get_inputs(), inputs, strict=True):
            numpy_dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
            binding.bind_input(node.name, "cuda", self._index, numpy_dtype, tuple(tensor.shape), tensor.data_ptr())
        for node in self._session.get_outputs():
            binding.bind_output(node.name, "cuda", self._index)
        return binding

    def tensors(self, binding: Any) -> list[torch.Tensor]:
        return [torch.from_numpy(value.numpy()) for value in binding.get_outputs()]


def _export(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    # The exporter talks on standard output, where the table goes.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, path, dynamo=True, external_data=True, verbose=False)


def _import_onnxruntime() -> Any:
    if find_spec("onnxruntime") is None:
        raise MissingPackage('onnxruntime is not installed: pip install "torchkiln[onnx]"')
    import onnxruntime

    return onnxruntime
