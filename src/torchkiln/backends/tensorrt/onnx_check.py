"""onnx_check: the ONNX graph that TensorRT parses, run by ONNX Runtime on the CPU: against PyTorch, and in place of an engine that cannot run here.

ONNX Runtime's CPU provider has few fp16 kernels and no bf16 ones. An operator that it has no fp16 kernel for is computed in fp32, and the casts
between such operators are dropped (at every optimization level): nothing is rounded there, and nothing overflows. So the graph is rewritten: every
value that is fp16 or bf16 is rounded to that type, and computed with in fp32. Weights, inputs and results of every operator are as narrow as on the
GPU, while sums inside an operator are fp32, as tensor cores' are. Where TensorRT fuses operators it may round less often.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...engine.artifact import Artifact
from ...errors import BuildFailed, TorchkilnError, UserError
from ...partition.segment import Segment
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


def onnx_error(stand_in: Runner, segment: Segment) -> float:
    """The error of the graph under ONNX Runtime against the segment in PyTorch, on its example inputs, as an engine's parity is measured: the worst
    output's relative L2 error, and for integers and booleans the fraction that differs."""
    from ...verify.parity import compare

    inputs = [value.cpu() for value in segment.example_inputs]
    with torch.no_grad():
        expected = segment.graph_module(*segment.example_inputs)
    try:
        return compare(stand_in(inputs), expected).relative_error
    except UserError as error:
        raise BuildFailed(f"the ONNX graph of {segment.name} gives other outputs than PyTorch: {error}") from error
