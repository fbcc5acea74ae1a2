from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from torchkiln.backends.contract import Candidate
from torchkiln.backends.openvino.precision import reject_precision
from torchkiln.backends.registry import get_backend
from torchkiln.engine.artifact import Artifact
from torchkiln.errors import BuildFailed, CorruptEngineFile, TargetMismatch
from torchkiln.settings import CompileSettings
from torchkiln.target import Target

from .contract_cases import CPU, CPU_TARGET, BackendContract, relative_error
from .make_segment import make_segment
from .models import STATIC

pytest.importorskip("openvino")
OPENVINO = get_backend("openvino")


class TestContract(BackendContract):
    name = "openvino"


class Function(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def rejects(function: Any, *inputs: torch.Tensor) -> dict[str, str]:
    nodes = make_segment(Function(function), inputs).graph_module.graph.nodes
    found = [OPENVINO.supports(n) for n in nodes if n.op == "call_function"]
    return {r.subject: r.reason for r in found if r is not None}


def test_precisions_are_real_or_rejected() -> None:
    settings = CompileSettings(enabled_precisions={torch.float32, torch.bfloat16, torch.float16})
    candidates, refused = OPENVINO.candidates(CPU_TARGET, settings)
    assert Candidate("openvino", torch.float32) in candidates
    assert len(candidates) + len(refused) == 3
    torch.manual_seed(0)
    module, inputs = STATIC["conv"]()
    segment = make_segment(module, inputs)
    with torch.no_grad():
        reference = segment.graph_module(*inputs)
    errors = {}
    for candidate in candidates:
        outputs = OPENVINO.load(OPENVINO.build(segment, candidate, settings), CPU, None)(inputs)
        errors[candidate.precision] = relative_error(outputs, reference)
    assert errors[torch.float32] < 1e-5
    # A narrow precision that is real has the error of its mantissa: were it fp32 in truth, it would have none.
    for dtype in errors.keys() - {torch.float32}:
        assert torch.finfo(dtype).eps / 50 < errors[dtype] < torch.finfo(dtype).eps * 20
    assert all("computes" in r.reason or "no " in r.reason for r in refused)


def test_one_precision_asked_is_one_candidate() -> None:
    candidates, refused = OPENVINO.candidates(CPU_TARGET, CompileSettings(enabled_precisions={torch.float32}))
    assert candidates == [Candidate("openvino", torch.float32)]
    assert refused == []


def test_availability() -> None:
    assert OPENVINO.availability(CPU_TARGET) is None
    reject = OPENVINO.availability(Target("sm_89"))
    assert reject is not None
    assert "CPU only" in reject.reason


def test_weights_are_exact() -> None:
    """Weights that fp16 cannot hold come back as they were."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(17, 5)
    linear.weight.data += 1e-6
    artifact = OPENVINO.build(make_segment(linear, (torch.randn(2, 17),)), Candidate("openvino", torch.float32), CompileSettings())
    raw = artifact.tensors["weights"].numpy().tobytes()
    assert linear.weight.detach().numpy().tobytes() in raw


def test_integers_that_come_out_otherwise_are_rejected() -> None:
    ids = torch.randint(-9, 9, (3, 7))
    assert "computes other numbers" in rejects(lambda i: i // 2, ids)["aten.div.Tensor_mode"]
    assert "aten.add.Tensor" in rejects(lambda i: i + 2**40, ids)
    assert rejects(lambda i: (i + 3) * 2, ids) == {}


def test_float64_is_rejected() -> None:
    assert "float64" in rejects(lambda x: x * 2, torch.randn(3, 5, dtype=torch.float64))["aten.mul.Tensor"]


def test_an_operator_without_a_translation_is_rejected() -> None:
    found = rejects(lambda x: torch.linalg.qr(x)[0] + 1, torch.randn(5, 3))
    assert found
    assert all("cannot convert" in reason for reason in found.values())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
        lambda x: x.to(torch.float16) * 2,
        lambda x: x.bfloat16() * 2,
        lambda x: torch.div(x.to(torch.int32), 3, rounding_mode="trunc"),
        lambda x: x.topk(3, dim=-1),
        lambda x: x.max(1),
        lambda x: (x > 0).sum(1),
        lambda x: x.unbind(1),
        lambda x: x.roll((1, -2), (2, 3)).flip(1),
        lambda x: x.reshape(x.shape[0], -1)[:, ::2],
    ],
)
def test_operators_and_dtypes(function: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 9)
    segment = make_segment(Function(function), (x,))
    runner = OPENVINO.load(OPENVINO.build(segment, Candidate("openvino", torch.float32), CompileSettings()), CPU, None)
    expected = segment.graph_module(x)
    assert relative_error(runner([x]), expected) < 1e-5


def test_16_bit_inputs() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x, y = torch.randn(3, 5).to(dtype), torch.randn(3, 5)
        segment = make_segment(Function(lambda x, y: (x.float() * y, x)), (x, y))
        runner = OPENVINO.load(OPENVINO.build(segment, Candidate("openvino", torch.float32), CompileSettings()), CPU, None)
        assert relative_error(runner([x, y]), segment.graph_module(x, y)) < 1e-5


def test_nothing_to_compute() -> None:
    with pytest.raises(BuildFailed, match="computes nothing"):
        OPENVINO.build(make_segment(Function(lambda x: x.clone()), (torch.randn(2),)), Candidate("openvino", torch.float32), CompileSettings())


def _artifact() -> Artifact:
    return OPENVINO.build(make_segment(torch.nn.Linear(3, 4), (torch.randn(2, 3),)), Candidate("openvino", torch.float32), CompileSettings())


def test_damaged_artifacts() -> None:
    artifact = _artifact()
    with pytest.raises(TargetMismatch, match="cannot load a segment"):
        OPENVINO.load(Artifact(artifact.payload[:300], artifact.tensors, artifact.metadata), CPU, None)
    with pytest.raises(CorruptEngineFile):
        OPENVINO.load(Artifact(artifact.payload, artifact.tensors, {**artifact.metadata, "call_plan": {"used_inputs": [0]}}), CPU, None)
    wrong = {"input_count": 2, "used_inputs": [0, 1], "outputs": [["result", 0]]}
    with pytest.raises(CorruptEngineFile, match="expected 2 inputs"):
        OPENVINO.load(Artifact(artifact.payload, artifact.tensors, {**artifact.metadata, "call_plan": wrong}), CPU, None)


def test_a_precision_this_cpu_lacks_is_a_target_mismatch() -> None:
    lacking = [d for d in (torch.float16, torch.bfloat16) if (r := reject_precision(d)) is not None and "computes" in r.reason]
    if not lacking:
        pytest.skip("this CPU has every precision")
    artifact = _artifact()
    name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[lacking[0]]
    with pytest.raises(TargetMismatch, match="computes as"):
        OPENVINO.load(Artifact(artifact.payload, artifact.tensors, {**artifact.metadata, "precision": name}), CPU, None)


def test_num_threads_is_used() -> None:
    from torchkiln.backends.openvino.runtime import compile_ir

    artifact = _artifact()
    for count in (1, 2):
        assert compile_ir(artifact, "fp32", count, {}).get_property("INFERENCE_NUM_THREADS") == count


def test_no_telemetry_and_no_builder_on_load() -> None:
    """Converting and loading import no telemetry; loading in a fresh process imports no part of the compiler."""
    script = """
import sys, torch
from torchkiln.backends.openvino.library import import_openvino, core
from torchkiln.backends.openvino import runtime
core()
assert "openvino_telemetry" not in sys.modules, "telemetry"
from openvino.tools.ovc import telemetry_utils
assert telemetry_utils.tm.__name__.endswith("telemetry_stub"), telemetry_utils.tm
bad = [m for m in sys.modules if m.startswith("torchkiln.") and m.split(".")[1] in ("capture", "lower", "partition", "verify", "race", "compiler")]
bad += [m for m in sys.modules if m.startswith("torchkiln.backends.") and m.endswith((".build", ".convert", ".probe", ".support"))]
assert not bad, bad
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
