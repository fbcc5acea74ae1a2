"""OpenVINO's own int8: NNCF's post-training quantization, as OpenVINO's documentation advises."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

from ..case import Case
from .contract import Refusal, Runner, refuse_missing
from .openvino import OpenVINO, convert, openvino_runner


@dataclass(frozen=True)
class OpenVinoNncf:
    """``nncf.quantize`` with its defaults on the case's calibration data, then as the peer ``openvino``. ``floating``: what the rest computes in."""

    name: str
    floating: torch.dtype
    slow_build: bool = False

    def refuse(self, case: Case, precision: torch.dtype) -> Refusal | None:
        return refuse_missing("nncf", None) or OpenVINO().refuse(case, precision)

    def build(self, case: Case, precision: torch.dtype) -> Runner:
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        model = convert(case)
        samples = [tuple(t.float().numpy() if t.is_floating_point() else t.numpy() for t in inputs) for inputs in case.calibration_sets]
        kind = nncf.ModelType.TRANSFORMER if _has_attention(model) else None
        with redirect_stdout(io.StringIO()):  # its progress bars
            model = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=kind)
        runner = openvino_runner(model, case, self.floating)
        runner.options += f", NNCF {nncf.__version__}" + (" (transformer)" if kind else "")
        return runner


def _has_attention(model: Any) -> bool:
    """Whether NNCF's documentation would have it called a transformer."""
    kinds = {node.get_type_name() for node in model.get_ordered_ops()}
    return "ScaledDotProductAttention" in kinds


FP32 = OpenVinoNncf("openvino-nncf", torch.float32)
BF16 = OpenVinoNncf("openvino-nncf-bf16", torch.bfloat16)
