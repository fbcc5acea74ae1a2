"""fake_quantize becomes a pair that computes the same, and weights of it become integers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchkiln.capture.fake_quantize_shapes import register_fake_quantize_shapes
from torchkiln.lower.convert_fake_quantize import convert_fake_quantize
from torchkiln.lower.fold_constants import fold_constants
from torchkiln.lower.fold_quantize import fold_quantize
from torchkiln.lower.graph_edit import constant_of
from torchkiln.quantized_ops import is_dequantize, is_quantize, read_quantization

register_fake_quantize_shapes()  # as capture does


class Trained(nn.Module):
    """What quantization-aware training leaves: fake-quantized input and weight; the weight is computed, as with a batch norm folded into it."""

    def __init__(self, low: int, high: int, *, tensors: bool) -> None:
        super().__init__()
        self.low, self.high, self.tensors = low, high, tensors
        self.conv = nn.Conv2d(3, 5, 3)
        self.register_buffer("factor", torch.rand(5, 1, 1, 1) + 0.5)
        self.register_buffer("scale", torch.tensor([0.021]))
        self.register_buffer("zero", torch.tensor([3], dtype=torch.int32))
        self.register_buffer("scales", torch.rand(5) * 0.002 + 0.001)
        self.register_buffer("zeros", torch.zeros(5, dtype=torch.int32))

    def forward(self, x):
        scale, zero = (self.scale, self.zero) if self.tensors else (0.021, 3)
        x = torch.fake_quantize_per_tensor_affine(x, scale, zero, self.low, self.high)
        weight = torch.fake_quantize_per_channel_affine(self.conv.weight * self.factor, self.scales, self.zeros, 0, -127, 127)
        return F.conv2d(x, weight, self.conv.bias)


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize(("low", "high", "dtype"), [(-128, 127, torch.int8), (0, 255, torch.uint8), (0, 127, torch.int8)])
def test_becomes_pairs_with_integer_weights(lowering, low, high, dtype, tensors):
    torch.manual_seed(low + high)
    model = Trained(low, high, tensors=tensors)
    graph_module = lowering.capture_dynamic_batch(model, torch.randn(2, 3, 7, 6))
    assert convert_fake_quantize(graph_module) == 2
    fold_constants(graph_module)
    assert fold_quantize(graph_module) >= 1
    lowering.check_graph(graph_module)
    lowering.check_equal(graph_module, model, torch.randn(5, 3, 7, 6))
    quantizes = [n for n in graph_module.graph.nodes if is_quantize(n)]
    assert [read_quantization(n).dtype for n in quantizes] == [dtype]
    assert read_quantization(quantizes[0]).scale == pytest.approx(0.021)
    weights = [constant_of(read_quantization(n).source) for n in graph_module.graph.nodes if is_dequantize(n)]
    (weight,) = [w for w in weights if w is not None]
    assert weight.dtype is torch.int8
    assert weight.shape == (5, 3, 3, 3)


def test_wider_integers_stay_as_they_are(lowering):
    model = Trained(-32768, 32767, tensors=False)
    graph_module = lowering.capture(model, torch.randn(2, 3, 7, 6))
    assert convert_fake_quantize(graph_module) == 1, "only the weight's"
    assert lowering.ops(graph_module)["fake_quantize_per_tensor_affine.default"] == 1
    lowering.check_equal(graph_module, model, torch.randn(2, 3, 7, 6))


def test_integer_weights_are_not_folded_back(lowering):
    graph_module = lowering.capture(Trained(-128, 127, tensors=False), torch.randn(2, 3, 7, 6))
    convert_fake_quantize(graph_module)
    for _ in range(2):
        fold_quantize(graph_module)
        fold_constants(graph_module)
    assert sum(is_dequantize(n) for n in graph_module.graph.nodes) == 2
    assert fold_quantize(graph_module) == 0
