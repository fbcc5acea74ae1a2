"""Quantize/dequantize pairs of a model arrive in TensorRT as they are: nothing on the way folds or drops them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import nn

import torchkiln

pytest.importorskip("tensorrt_rtx")
qd = torch.ops.quantized_decomposed


class Quantized(nn.Module):
    """A convolution with int8 weights (per channel) and int8 inputs (per tensor), and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(8, 3, 3, 3)
        self.scale = nn.Buffer(weight.abs().amax((1, 2, 3)) / 127)
        self.zero = nn.Buffer(torch.zeros(8, dtype=torch.int64))
        self.weight = nn.Buffer((weight / self.scale[:, None, None, None]).round().clamp(-128, 127).to(torch.int8))
        self.head = nn.Linear(8, 5)

    @staticmethod
    def through_int8(x, scale):
        return qd.dequantize_per_tensor(qd.quantize_per_tensor(x, scale, 0, -128, 127, torch.int8), scale, 0, -128, 127, torch.int8)

    def forward(self, x):
        weight = qd.dequantize_per_channel(self.weight, self.scale, self.zero, 0, -128, 127, torch.int8)
        y = nn.functional.conv2d(self.through_int8(x, 0.03), weight).relu()
        return self.head(self.through_int8(y, 0.02).mean((2, 3)))


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("fp16", 5e-3)])
def test_pairs_are_kept(precision, limit):
    torch.manual_seed(0)
    engine = torchkiln.compile(
        Quantized().eval(), [torch.randn(2, 3, 15, 17)], backend="tensorrt", target="sm_89,sm_120", enabled_precisions={precision}, verify=limit
    )
    report = engine.report()
    assert report.rejects == []
    (segment,) = engine.contents.segments
    layers = segment.artifact.metadata["layers"]
    kinds = Counter(layer["type"] for layer in layers)
    assert (kinds["quantize"], kinds["dequantize"]) == (2, 3)
    assert {layer["dtype"] for layer in layers if layer["type"] == "quantize"} == {"int8"}
    assert any(layer["type"] == "constant" and layer["dtype"] == "int8" for layer in layers), "the weight is stored as int8"
