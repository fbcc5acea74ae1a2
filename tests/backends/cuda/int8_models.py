"""Quantized graphs as the CUDA backend gets them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from tests.backends.cuda.fusion import check_graph
from torch import nn
from torch.fx import Graph, GraphModule

import torchkiln
from torchkiln.backends.cuda.passes.pipeline import PASSES, fuse
from torchkiln.backends.cuda.specialize import specialize
from torchkiln.capture.arguments import read_arguments
from torchkiln.capture.capture import capture
from torchkiln.lower.convert_precision import convert_precision
from torchkiln.lower.pipeline import lower
from torchkiln.program import Program
from torchkiln.ptq import DataLoaderCalibrator, QuantizeOptions
from torchkiln.quantize.quantize_program import quantize_program
from torchkiln.quantized_ops import register_quantized_ops

EVERYTHING = QuantizeOptions(stem=True, head=True, depthwise=True)


@cache
def _captured(make: type[nn.Module], shape: tuple[int, ...]) -> Program:
    torch.manual_seed(0)
    program = capture(make().eval(), read_arguments([torchkiln.Input(shape)], None, torch.device("cpu"), 0))
    lower(program)
    return program


@cache
def _quantized(make: type[nn.Module], shape: tuple[int, ...], options: QuantizeOptions) -> GraphModule:
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(shape, generator=generator) for _ in range(2)]
    calibrator = DataLoaderCalibrator(data, algorithm="max", options=options)
    return quantize_program(_captured(make, shape), calibrator).program.graph_module


def quantized(
    make: type[nn.Module], shape: tuple[int, ...], precision: torch.dtype | None = None, options: QuantizeOptions = EVERYTHING
) -> GraphModule:
    """A model's graph with pairs calibrated on random data, at fixed shapes, all else in ``precision``."""
    graph_module = specialize(_quantized(make, shape, options), [shape])
    if precision:
        convert_precision(graph_module, precision)
    return graph_module


def fused(before: GraphModule) -> GraphModule:
    """A copy after all passes that always run, its invariants checked."""
    after = copy.deepcopy(before)
    fuse(after, PASSES)
    check_graph(after)
    return after


def error(got: torch.Tensor, right: torch.Tensor) -> float:
    return float((got.double() - right.double()).norm() / right.double().norm())


class Bottlenecks(nn.Module):
    """A stem with a pool, a residual block, one with a convolution in the shortcut, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.a, self.b, self.c = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.d, self.e, self.shortcut = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.Conv2d(16, 16, 1, stride=2)
        self.hidden, self.head = nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        x = F.relu(x + self.c(F.relu(self.b(F.relu(self.a(x))))))
        x = F.relu(self.shortcut(x) + self.e(F.relu(self.d(x))))
        return self.head(F.gelu(self.hidden(x.mean((2, 3)))))


class Joined(nn.Module):
    """A concatenation and a padding between int8 layers, a grouped convolution, a result that is read in 8 bits and as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(32, 8, 3)
        self.grouped, self.d = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.a(x))
        y = F.relu(torch.cat([self.b(x), x], 1))
        y = self.c(F.pad(y, (1, 1, 1, 1)))
        return self.d(torch.tanh(self.grouped(F.relu(y)))), x


def graph_of(write: Callable[[Graph, torch.fx.Node], torch.fx.Node], shape: tuple[int, ...], **constants: torch.Tensor) -> GraphModule:
    """A graph written by hand, of core ATen and pairs: ``write(graph, x)`` gives the output."""
    graph, root = Graph(), nn.Module()
    for name, tensor in constants.items():
        root.register_buffer(name, tensor)
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(shape)
    graph.output((write(graph, x),))
    return specialize(GraphModule(root, graph), [shape])


def pair(graph: Graph, x: torch.fx.Node, scale: float, zero_point: int = 0, dtype: torch.dtype = torch.int8, **kwargs: object) -> torch.fx.Node:
    """A quantize and its dequantize, over all integers of ``dtype``."""
    ops, info = register_quantized_ops(), torch.iinfo(dtype)
    grid = (scale, zero_point, info.min, info.max, dtype)
    return graph.call_function(
        ops.dequantize_per_tensor.default, (graph.call_function(ops.quantize_per_tensor.default, (x, *grid)), *grid), dict(kwargs)
    )


def weight(graph: Graph, name: str = "w", axis: int = 0) -> torch.fx.Node:
    """The int8 constant ``name`` by the scales ``name_s`` and the zero points ``name_z``."""
    operands = [graph.get_attr(part) for part in (name, f"{name}_s", f"{name}_z")]
    return graph.call_function(register_quantized_ops().dequantize_per_channel.default, (*operands, axis, -127, 127, torch.int8))


def int8_weight(*shape: int, axis: int = 0, zero: int = 0, dtype: torch.dtype = torch.int8) -> dict[str, torch.Tensor]:
    """Such a constant, of random integers."""
    generator = torch.Generator().manual_seed(2)
    integers = torch.randint(-127 if dtype is torch.int8 else 0, 127, shape, generator=generator).to(dtype)
    return {"w": integers, "w_s": torch.rand(shape[axis], generator=generator) * 0.01 + 0.001, "w_z": torch.full((shape[axis],), zero)}
