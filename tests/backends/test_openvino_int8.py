"""Quantized graphs on OpenVINO: every kind of pair gives PyTorch's numbers, or is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchkiln.backends.contract import Candidate
from torchkiln.backends.registry import get_backend
from torchkiln.quantized_ops import register_quantized_ops
from torchkiln.settings import CompileSettings

from .make_segment import make_segment

pytest.importorskip("openvino")
OPENVINO, CPU = get_backend("openvino"), torch.device("cpu")
ops = register_quantized_ops()


class Pairs(nn.Module):
    """A quantized input and an int8 weight in front of a convolution or a linear layer."""

    def __init__(self, grid: tuple, axis: int | None, zero: int, *, linear: bool) -> None:
        super().__init__()
        self.grid, self.axis, self.linear = grid, axis, linear
        shape = (9, 6) if linear else (9, 6, 3, 3)
        self.register_buffer("weight", torch.randint(-127, 128, shape, dtype=torch.int8))
        channels = shape[axis or 0]
        self.register_buffer("scales", torch.rand(channels) * 0.01 + 0.001)
        self.register_buffer("zeros", torch.full((channels,), zero, dtype=torch.int64))
        self.register_buffer("bias", torch.randn(9))

    def forward(self, x):
        x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *self.grid), *self.grid)
        if self.axis is None:
            weight = ops.dequantize_per_tensor(self.weight, 0.011, 0, -127, 127, torch.int8)
        else:
            weight = ops.dequantize_per_channel(self.weight, self.scales, self.zeros, self.axis, -127, 127, torch.int8)
        return F.linear(x, weight, self.bias) if self.linear else F.conv2d(x, weight, self.bias, padding=1)


def run(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[dict]]:
    segment = make_segment(module, (x,))
    for node in segment.graph_module.graph.nodes:
        assert node.op != "call_function" or OPENVINO.supports(node) is None, node.format_node()
    artifact = OPENVINO.build(segment, Candidate("openvino", torch.float32, quantized=True), CompileSettings())
    (output,) = OPENVINO.load(artifact, CPU, None)((x,))
    return output, artifact.metadata["layers"]


GRIDS = {
    "symmetric": (0.031, 0, -128, 127, torch.int8),
    "narrow": (0.031, 0, -127, 127, torch.int8),
    "shifted": (0.031, -17, -128, 127, torch.int8),
    "unsigned": (0.013, 0, 0, 255, torch.uint8),
    "unsigned, shifted": (0.021, 77, 0, 255, torch.uint8),
    "7 bits": (0.04, 64, 0, 127, torch.uint8),
    "5 bits": (0.2, -3, -16, 15, torch.int8),
}


@pytest.mark.parametrize("linear", [False, True], ids=["conv", "linear"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_activations_of_every_grid(grid, linear):
    torch.manual_seed(0)
    module = Pairs(grid, 0, 0, linear=linear)
    x = torch.randn((5, 6) if linear else (2, 6, 7, 11))
    got, layers = run(module, x)
    torch.testing.assert_close(got, module(x), rtol=1e-4, atol=1e-4)
    assert any(layer["dtype"] == "int8" for layer in layers if layer["type"] in ("Convolution", "FullyConnected")), layers


@pytest.mark.parametrize(("axis", "zero"), [(None, 0), (0, 3), (1, 0), (-1, 0)])
def test_weights_of_every_axis(axis, zero):
    torch.manual_seed(1)
    module = Pairs(GRIDS["symmetric"], axis, zero, linear=True)
    x = torch.randn(5, 6)
    got, _ = run(module, x)
    torch.testing.assert_close(got, module(x), rtol=1e-4, atol=1e-4)


class Alone(nn.Module):
    def forward(self, x):
        return ops.quantize_per_tensor(x, 0.03, 0, -128, 127, torch.int8)


class ReadTwice(nn.Module):
    def forward(self, x):
        integers = ops.quantize_per_tensor(x, 0.03, 0, -128, 127, torch.int8)
        return ops.dequantize_per_tensor(integers, 0.03, 0, -128, 127, torch.int8), integers + 1


class OtherGrid(nn.Module):
    def forward(self, x):
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, 0.03, 0, -128, 127, torch.int8), 0.06, 0, -128, 127, torch.int8)


class ByChannel(nn.Module):
    def forward(self, x):
        grid = (torch.full((6,), 0.03), torch.zeros(6, dtype=torch.int64), 1, -128, 127, torch.int8)
        return ops.dequantize_per_channel(ops.quantize_per_channel(x, *grid), *grid)


@pytest.mark.parametrize("module", [Alone(), ReadTwice(), OtherGrid(), ByChannel()], ids=lambda m: type(m).__name__)
def test_what_is_no_pair_is_refused(module):
    segment = make_segment(module, (torch.randn(5, 6),))
    refused = [OPENVINO.supports(n) for n in segment.graph_module.graph.nodes if "quantize" in str(n.target)]
    assert all(refused)
    assert all("OpenVINO takes" in r.reason for r in refused)
