"""OpenVINO used directly, as its documentation advises for latency."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from ...dtypes import precision_name
from ..case import Case
from .contract import Refusal, Refused, Runner, refuse_missing

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(frozen=True)
class OpenVINO:
    """torch.export -> convert_model -> static shapes -> compile_model(LATENCY); inputs shared, not copied; outputs left in OpenVINO's buffers."""

    name: str = "openvino"
    slow_build: bool = False

    def refuse(self, case: Case, precision: torch.dtype) -> Refusal | None:
        missing = refuse_missing("openvino", None)
        if missing:
            return missing
        if case.device.type != "cpu":
            return Refusal("skipped", f"runs on the CPU, this benchmark on {case.device.type}")
        return None

    def build(self, case: Case, precision: torch.dtype) -> Runner:
        return openvino_runner(convert(case), case, precision)


def convert(case: Case) -> Any:
    """The case's model in float32 as an ``openvino.Model`` of fixed shapes."""
    import openvino as ov

    (inputs, *_) = case.cast_inputs(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ov.convert_model(torch.export.export(case.copy_model(torch.float32), inputs, strict=False))
    # The frontend leaves sizes open; fixed ones let the CPU plugin choose kernels and memory once.
    model.reshape({i: list(t.shape) for i, t in enumerate(inputs)})
    return model


def openvino_runner(model: Any, case: Case, precision: torch.dtype) -> Runner:
    """An ``openvino.Model`` compiled for the CPU with ``precision`` as its hint. Raises Refused where the processor computes in another."""
    import openvino as ov

    options = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": case.num_threads}
    compiled = ov.Core().compile_model(model, "CPU", options)
    actual = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if actual != _HINTS[precision]:
        raise Refused(Refusal("skipped", f"computes in {actual} when asked for {precision_name(precision)} on this processor"))
    request = compiled.create_infer_request()
    call = _Call(request, ov.Tensor)
    arrays = [tuple(t.contiguous().numpy() for t in inputs) for inputs in case.cast_inputs(torch.float32)]
    return Runner(call, arrays, call.tensors, f"LATENCY, {_HINTS[precision]}, {case.num_threads} threads", on_device=False)


class _Call:
    """Infer on shared arrays; they are handed over again only when they are other ones than at the last call."""

    def __init__(self, request: Any, tensor_type: Any) -> None:
        self._request = request
        self._tensor_type = tensor_type
        self._current: tuple[Any, ...] = ()

    def __call__(self, *arrays: Any) -> None:
        if len(arrays) != len(self._current) or any(a is not b for a, b in zip(arrays, self._current, strict=True)):
            for index, array in enumerate(arrays):
                self._request.set_input_tensor(index, self._tensor_type(array, shared_memory=True))
            self._current = arrays
        self._request.infer(share_outputs=True)

    def tensors(self, _: None) -> list[torch.Tensor]:
        outputs = range(len(self._request.model_outputs))
        return [torch.from_numpy(self._request.get_output_tensor(i).data.copy()) for i in outputs]
