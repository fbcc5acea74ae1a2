"""examine: what the exporter and TensorRT's parser refuse of a segment, found operator by operator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkiln.backends.contract import Candidate
from torchkiln.backends.tensorrt import examine as module
from torchkiln.backends.tensorrt.convert import convert_segment
from torchkiln.backends.tensorrt.examine import examine
from torchkiln.backends.tensorrt.library import import_builder
from torchkiln.backends.tensorrt.network import parse_network
from torchkiln.backends.tensorrt.support import supports
from torchkiln.settings import CompileSettings
from torchkiln.target import Target

from ..make_segment import make_segment

pytest.importorskip("tensorrt_rtx")

TARGETS = (Target("sm_89"),)


class Some(nn.Module):
    """Two kinds of operators that ONNX has no form for, one of them twice with one shape, among some that it has."""

    def forward(self, x):
        y = torch.erfinv(x.tanh() * 0.5)
        return torch.erfinv(y.tanh() * 0.4) + torch.special.i0(y).sum()


@pytest.fixture
def tried(monkeypatch):
    """The operators that were tried alone."""
    found = []
    reason = module._reason_against
    monkeypatch.setattr(module, "_reason_against", lambda node, *rest: found.append(str(node.target)) or reason(node, *rest))
    return found


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_each_refused_operator_is_named_and_each_kind_is_tried_once(precision, tried):
    segment = make_segment(Some(), (torch.randn(3, 7),))
    refused = examine(segment, Candidate("tensorrt", precision, targets=TARGETS), CompileSettings())
    assert [reject.subject for reject in refused.values()] == ["aten.erfinv.default", "aten.erfinv.default", "aten.i0.default"]
    assert all(node in segment.graph_module.graph.nodes for node in refused)
    assert all("cannot be exported to ONNX" in reject.reason for reject in refused.values())
    assert tried.count("aten.erfinv.default") == 1


def test_a_segment_that_is_taken_whole_is_not_taken_apart(tried):
    examine(make_segment(nn.Linear(7, 7), (torch.randn(3, 7),)), Candidate("tensorrt", torch.float32, targets=TARGETS), CompileSettings())
    assert tried == []


def test_what_the_parser_refuses_has_its_words():
    class BF16(nn.Module):
        def forward(self, x):
            return torch.nn.functional.hardswish(x) + x

    segment = make_segment(BF16(), (torch.randn(3, 7),))
    graph = convert_segment(segment, torch.float32)
    assert parse_network(import_builder(TARGETS), graph).errors == ""
    graph.proto = graph.proto.replace(b"HardSwish", b"HardSwosh")
    parsed = parse_network(import_builder(TARGETS), graph)
    assert parsed.network is None
    assert "HardSwosh" in parsed.errors
    refused = examine(segment, Candidate("tensorrt", torch.float32, targets=TARGETS), CompileSettings())
    assert refused == {}, "no operator by itself is at fault: the build says what is wrong"


def test_dtypes_that_tensorrt_lacks():
    class Double(nn.Module):
        def forward(self, x):
            return (x.double() * 3).float().relu()

    nodes = [n for n in make_segment(Double(), (torch.randn(3),)).graph_module.graph.nodes if n.op == "call_function"]
    verdicts = {str(n.target): supports(n) for n in nodes}
    assert verdicts["aten.relu.default"] is None
    assert "TensorRT does not take torch.float64" in verdicts["aten.mul.Tensor"].reason
