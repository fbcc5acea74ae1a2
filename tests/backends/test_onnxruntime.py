from __future__ import annotations

import builtins
import io
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
import torch

from torchkiln.backends.contract import Candidate
from torchkiln.backends.registry import get_backend
from torchkiln.engine.artifact import Artifact
from torchkiln.errors import BuildFailed, CorruptEngineFile, MissingPackage, TargetMismatch
from torchkiln.settings import CompileSettings
from torchkiln.target import Target

from .contract_cases import CPU, CPU_TARGET, BackendContract, relative_error
from .make_segment import make_segment
from .models import STATIC

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ONNXRUNTIME = get_backend("onnxruntime")
FP32 = Candidate("onnxruntime", torch.float32)


class TestContract(BackendContract):
    name = "onnxruntime"


class Function(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def test_only_fp32() -> None:
    settings = CompileSettings(enabled_precisions={torch.float32, torch.bfloat16, torch.float16})
    candidates, refused = ONNXRUNTIME.candidates(CPU_TARGET, settings)
    assert candidates == [FP32]
    assert {r.subject for r in refused} == {"bf16", "fp16"}
    assert ONNXRUNTIME.candidates(CPU_TARGET, CompileSettings(enabled_precisions={torch.bfloat16}))[0] == []


def test_availability(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ONNXRUNTIME.availability(CPU_TARGET) is None
    assert "CPU only" in ONNXRUNTIME.availability(Target("sm_89")).reason
    monkeypatch.setattr("torchkiln.backends.onnxruntime.availability.find_spec", lambda name: None if name == "onnxruntime" else object())
    assert "pip install torchkiln[onnx]" in ONNXRUNTIME.availability(CPU_TARGET).reason


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return real(name, *args, **kwargs)

    artifact = _artifact()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackage, match=r"torchkiln\[onnx\]"):
        ONNXRUNTIME.load(artifact, CPU, None)


def test_weights_stay_out_of_the_graph() -> None:
    """The graph is small, the weights are tensors, bit for bit."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(300, 41)
    artifact = ONNXRUNTIME.build(make_segment(linear, (torch.randn(2, 300),)), FP32, CompileSettings())
    weights = [t for name, t in artifact.tensors.items() if name.startswith("weight_") and t.numel() == linear.weight.numel()]
    assert any(torch.equal(t, linear.weight) or torch.equal(t, linear.weight.t()) for t in weights)
    assert len(artifact.payload) < linear.weight.nbytes / 4


def test_weights_are_not_copied_on_load() -> None:
    """A loaded session reads the artifact's own memory for a weight its kernels do not repack."""
    table = torch.nn.Embedding(500, 30)
    artifact = ONNXRUNTIME.build(make_segment(table, (torch.randint(0, 500, (7,)),)), FP32, CompileSettings())
    runner = ONNXRUNTIME.load(artifact, CPU, None)
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    assert torch.equal(runner([ids])[0], table(ids))
    next(t for n, t in artifact.tensors.items() if n.startswith("weight_")).fill_(2.5)
    assert torch.equal(runner([ids])[0], torch.full((7, 30), 2.5))


def test_building_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    module, inputs = STATIC["conv"]()
    segment = make_segment(module, inputs)
    capfd.readouterr()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        ONNXRUNTIME.build(segment, FP32, CompileSettings())
    assert (out.getvalue(), err.getvalue(), *capfd.readouterr()) == ("", "", "", "")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.to(torch.int32) * 2,
        lambda x: torch.div(x.to(torch.int64), 2, rounding_mode="trunc"),
        lambda x: x.topk(3, dim=-1),
        lambda x: (x > 0).sum(1) + 2**40,
        lambda x: x.unbind(1),
        lambda x: x.double() * 2,
    ],
)
def test_operators_and_dtypes(function: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 9)
    segment = make_segment(Function(function), (x,))
    assert all(ONNXRUNTIME.supports(n) is None for n in segment.graph_module.graph.nodes if n.op == "call_function" and n.users)
    runner = ONNXRUNTIME.load(ONNXRUNTIME.build(segment, FP32, CompileSettings()), CPU, None)
    assert relative_error(runner([x]), segment.graph_module(x)) < 1e-5


def test_16_bit_floats_are_rejected() -> None:
    nodes = make_segment(Function(lambda x: x * 2), (torch.randn(3).bfloat16(),)).graph_module.graph.nodes
    found = [ONNXRUNTIME.supports(n) for n in nodes if n.op == "call_function"]
    assert "bfloat16" in found[0].reason


def test_nothing_to_compute() -> None:
    with pytest.raises(BuildFailed, match="computes nothing"):
        ONNXRUNTIME.build(make_segment(Function(lambda x: x.clone()), (torch.randn(2),)), FP32, CompileSettings())


def _artifact() -> Artifact:
    return ONNXRUNTIME.build(make_segment(torch.nn.Linear(30, 40), (torch.randn(2, 30),)), FP32, CompileSettings())


def test_damaged_artifacts() -> None:
    artifact = _artifact()
    with pytest.raises(TargetMismatch, match="cannot load a segment"):
        ONNXRUNTIME.load(Artifact(artifact.payload[:100], artifact.tensors, artifact.metadata), CPU, None)
    with pytest.raises((TargetMismatch, CorruptEngineFile)):
        ONNXRUNTIME.load(Artifact(artifact.payload, {}, artifact.metadata), CPU, None)
    with pytest.raises(CorruptEngineFile):
        ONNXRUNTIME.load(Artifact(artifact.payload, artifact.tensors, {**artifact.metadata, "call_plan": None}), CPU, None)
