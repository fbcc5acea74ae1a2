"""onnx_check: the ONNX graph that TensorRT parses, run by ONNX Runtime on the CPU: against PyTorch, and in place of an engine that cannot run here.

ONNX Runtime's CPU provider has few fp16 kernels and no bf16 ones. An operator that it has no fp16 kernel for is computed in fp32, and the casts
between such operators are dropped (at every optimization level): nothing is rounded there, and nothing overflows. So the graph is rewritten: every
value that is fp16 or bf16 is rounded to that type, and computed with in fp32. Weights, inputs and results of every operator are as narrow as on the
GPU, while sums inside an operator are fp32, as tensor cores' are. Where TensorRT fuses operators it may round less often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...engine.artifact import Artifact
from ...errors import BuildFailed, TorchkilnError
from ..contract import Runner
from ..onnx_export import first_line
from ..onnxruntime.runtime import Session
from .convert import OnnxGraph
from .round_low import round_low


def make_stand_in(graph: OnnxGraph, num_threads: int | None) -> Runner:
    """A Runner of the whole segment. Raises BuildFailed when ONNX Runtime refuses the graph."""
    proto, weights = round_low(graph.proto, graph.weights)
    try:
        session = Session(Artifact(proto, {**weights}), num_threads, spin=False)
    except TorchkilnError as error:
        raise BuildFailed(f"ONNX Runtime cannot check the graph of {graph.segment.name}: {first_line(error)}") from error

    def call(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        try:
            return session(inputs)
        except TorchkilnError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise BuildFailed(f"ONNX Runtime cannot run the graph of {graph.segment.name}: {first_line(error)}") from error

    return graph.plan.wrap(call, graph.constants)


def onnx_error(graph: OnnxGraph, segment_inputs: Sequence[torch.Tensor], stand_in: Runner, segment: Any) -> float:
    """Relative L2 error over all outputs of the segment, of the graph under ONNX Runtime against ``segment`` in PyTorch, on ``segment_inputs``.

    inf where shapes differ, a number is not finite on one side alone, or integers and booleans are not the same.
    """
    inputs = [value.cpu() for value in segment_inputs]
    with torch.no_grad():
        expected = segment.graph_module(*segment_inputs)
    return relative_error(stand_in(inputs), [value.cpu() for value in expected])


def relative_error(outputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """``|out - ref| / |ref|`` over all floating tensors together; inf for anything that cannot be compared so."""
    difference = norm = 0.0
    for output, reference in zip(outputs, expected, strict=True):
        if output.shape != reference.shape or output.is_floating_point() != reference.is_floating_point():
            return float("inf")
        if not reference.is_floating_point():
            if not torch.equal(output.to(reference.dtype), reference):
                return float("inf")
            continue
        output, reference = output.double(), reference.double()
        finite = torch.isfinite(reference)
        if not torch.equal(torch.isfinite(output), finite):
            return float("inf")
        difference += float((output - reference)[finite].square().sum())
        norm += float(reference[finite].square().sum())
    return float((difference / norm) ** 0.5) if norm else (0.0 if difference == 0 else float("inf"))
