"""Helpers of the fusion tests: a model's graph before and after a pass, the numbers of both, and what every pass must leave true."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

import torchkiln
from torchkiln.capture.arguments import read_arguments
from torchkiln.capture.capture import capture
from torchkiln.lower.convert_precision import convert_precision
from torchkiln.lower.graph_edit import fake_mode_of
from torchkiln.lower.pipeline import lower

Precision = torch.dtype | None
PRECISIONS = (None, torch.float16, torch.bfloat16)
TOLERANCES = {None: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def lowered(model: torch.nn.Module, shapes: Sequence[tuple[int, ...]], precision: torch.dtype | None = None) -> GraphModule:
    """The model's graph as the CUDA backend gets it."""
    arguments = read_arguments([torchkiln.Input(shape) for shape in shapes], None, torch.device("cpu"), 0)
    program = capture(model.eval(), arguments)
    lower(program)
    if precision:
        convert_precision(program.graph_module, precision)
    return program.graph_module


def check(
    model: torch.nn.Module,
    *shapes: tuple[int, ...],
    run: Callable[[GraphModule], object],
    precision: torch.dtype | None = None,
    channels_last: bool = False,
) -> GraphModule:
    """The graph after ``run``, whose invariants hold and whose outputs are those of the graph before."""
    return _check(lowered(model, shapes, precision), shapes, run, precision, channels_last)


def check_each(model: torch.nn.Module, *shapes: tuple[int, ...], run: Callable[[GraphModule], object]) -> Iterator[tuple[Precision, GraphModule]]:
    """``check`` in each of PRECISIONS, of one capture."""
    captured = lowered(model, shapes)
    for precision in PRECISIONS:
        before = copy.deepcopy(captured)
        if precision:
            convert_precision(before, precision)
        yield precision, _check(before, shapes, run, precision)


def _check(
    before: GraphModule, shapes: Sequence[tuple[int, ...]], run: Callable[[GraphModule], object], precision: Precision, channels_last: bool = False
) -> GraphModule:
    after = copy.deepcopy(before)
    run(after)
    check_graph(after)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    if channels_last:
        inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
    with torch.no_grad():
        for expected, got in zip(before(*inputs), after(*inputs), strict=True):
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
            assert (got.double() - expected.double()).norm() <= TOLERANCES[precision] * expected.double().norm()
    return after


def check_graph(graph_module: GraphModule) -> None:
    """Every ``meta["val"]`` is what its operator computes of those of its arguments."""
    graph_module.graph.lint()
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
        with fake_mode_of(graph_module), torch.no_grad():
            computed = node.target(*args, **kwargs)
        for a, b in zip(tree_leaves(computed), tree_leaves(node.meta["val"]), strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()), node.format_node()


def ops(graph_module: GraphModule) -> Counter[str]:
    """How often each operator is called: "add", "conv", ... without namespace and overload; casts and views of outputs count too."""
    calls = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    return Counter("getitem" if node.target is operator.getitem else str(node.target).split(".")[1] for node in calls)


def calls(graph_module: GraphModule, name: str) -> list[Node]:
    """The calls of the dialect's operator ``name``."""
    return graph_module.graph.find_nodes(op="call_function", target=getattr(torch.ops.torchkiln, name).default)


def rejects(graph_module: GraphModule) -> str:
    """The reasons, in lines."""
    return "\n".join(reason for _, reason in graph_module.meta.get("rejects", []))
