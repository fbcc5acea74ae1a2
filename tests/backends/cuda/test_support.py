"""What the CUDA backend takes, and where it says that it cannot build."""

from __future__ import annotations

import pytest
import torch
from tests.backends.make_segment import make_segment

from torchkiln.backends.contract import Candidate
from torchkiln.backends.cuda import availability as here
from torchkiln.backends.cuda.availability import availability, candidates
from torchkiln.backends.cuda.support import supports
from torchkiln.backends.registry import get_backend
from torchkiln.quantized_ops import register_quantized_ops
from torchkiln.race.race import check_int8
from torchkiln.settings import CompileSettings
from torchkiln.target import Target

GPU = Target("sm_90", torch.device("cuda", 0))


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def rejects(function, *inputs):
    nodes = make_segment(Function(function), inputs).graph_module.graph.nodes
    found = [supports(node) for node in nodes if node.op == "call_function"]
    return {reject.subject: reject.reason for reject in found if reject is not None}


def test_plain_operators_are_taken():
    assert rejects(lambda x: torch.nn.functional.softmax(x @ x.mT, -1).sum(0).cumsum(0), torch.randn(3, 4, 4)) == {}


@pytest.mark.parametrize(
    ("function", "inputs", "subject", "reason"),
    [
        (lambda x: x.nonzero(), [torch.randn(3, 4)], "aten.nonzero.default", "waits for the GPU"),
        (lambda x: x.masked_select(x > 0), [torch.randn(3, 4)], "aten.masked_select.default", "waits for the GPU"),
        (lambda x: x * torch.complex(x, x), [torch.randn(3, 4)], "aten.complex.default", "complex"),
        (lambda x: x + torch.rand_like(x), [torch.randn(3, 4)], "aten.rand_like.default", "random"),
    ],
)
def test_operators_that_are_not(function, inputs, subject, reason):
    assert reason in rejects(function, *inputs)[subject]


def test_an_operator_that_writes_into_its_argument():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3, device="meta")
    node = graph.call_function(torch.ops.aten.add_.Tensor, (x, x))
    node.meta["val"] = x.meta["val"]
    assert supports(node).reason == "writes into its argument"


def quantized(q, x, scales, zeros):
    return {
        "per tensor": lambda: q.dequantize_per_tensor(q.quantize_per_tensor(x, 0.1, 3, 0, 255, torch.uint8), 0.1, 3, 0, 255, torch.uint8),
        "per channel": lambda: q.quantize_per_channel(x, scales, zeros, 0, -128, 127, torch.int8),
        "16 bits": lambda: q.quantize_per_tensor(x, 0.1, 0, -32768, 32767, torch.int16),
        "a computed scale": lambda: q.quantize_per_tensor.tensor(x, scales[0], zeros[0], -128, 127, torch.int8),
    }


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("per tensor", ""), ("per channel", "one constant scale"), ("16 bits", "of 8 bits, not of int16"), ("a computed scale", "one constant scale")],
)
def test_pairs(kind, reason):
    q = register_quantized_ops()
    found = rejects(
        lambda x, scales, zeros: quantized(q, x, scales, zeros)[kind](), torch.randn(3, 4), torch.ones(3), torch.zeros(3, dtype=torch.int64)
    )
    pairs = {subject: why for subject, why in found.items() if subject.startswith("quantized_decomposed")}
    assert bool(pairs) is bool(reason)
    assert all(reason in why for why in pairs.values())


def test_int8_is_not_refused():
    assert get_backend("cuda").no_int8 == ""
    check_int8(CompileSettings(enabled_precisions={torch.int8}, backend="cuda"))


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU of compute capability 8.0 and Triton, as far as ``availability`` looks."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(here, "find_spec", lambda name: object())
    return monkeypatch


def test_available(gpu):
    assert availability(GPU) is None


@pytest.mark.parametrize(
    ("target", "reason"), [(Target("cpu", torch.device("cpu")), "for NVIDIA GPUs, not for cpu"), (Target("sm_90"), "sm_90 is not in this machine")]
)
def test_other_targets(gpu, target, reason):
    assert reason in availability(target).reason


def test_no_gpu(gpu):
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA GPU" in availability(GPU).reason


def test_no_triton(gpu):
    gpu.setattr(here, "find_spec", lambda name: None)
    assert "pip install triton" in availability(GPU).reason


def test_an_old_gpu(gpu):
    gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert availability(GPU).reason == "needs compute capability 8.0 or more, this GPU has 7.5"


def test_a_candidate_for_each_precision():
    precisions = {torch.float32, torch.float16, torch.bfloat16}
    found, refused = candidates(GPU, CompileSettings(enabled_precisions=precisions))
    assert {candidate.precision for candidate in found} == precisions
    assert (found[0], refused) == (Candidate("cuda", found[0].precision), [])
