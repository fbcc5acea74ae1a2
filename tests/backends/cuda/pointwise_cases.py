"""pointwise_cases: run every region of a traced function under Triton's interpreter, other nodes in torch, and compare with the function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from torchkiln.backends.cuda.pointwise.generate import pointwise_configs, pointwise_recipe
from torchkiln.backends.cuda.pointwise.regions import Region, find_regions, reorder
from torchkiln.backends.cuda.recipe import TensorSpec

from .interpret import interpret

TOLERANCE = {torch.float16: (1e-3, 1e-6), torch.bfloat16: (8e-3, 1e-6), torch.float32: (3e-6, 5e-7), torch.float64: (1e-12, 1e-13)}


def trace(function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Graph:
    return make_fx(lambda *tensors: function(*tensors), tracing_mode="fake")(*inputs).graph


def regions_of(function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> list[Region]:
    return find_regions(trace(function, inputs), lambda node: False)


def run_region(region: Region, inputs: list[torch.Tensor], outputs: list[torch.Tensor], config: dict[str, Any] | None = None) -> None:
    specs = [TensorSpec.of(t) for t in inputs], [TensorSpec.of(t) for t in outputs]
    for tried in [config] if config else pointwise_configs(region, *specs, 0):
        recipe = pointwise_recipe(region, *specs, 80, tried)
        interpret(recipe, {f"x{i}": t for i, t in enumerate(inputs)} | {f"y{i}": t for i, t in enumerate(outputs)})


def unset(spec: torch.Tensor) -> torch.Tensor:
    """A tensor like the fake one, of values that nothing computes."""
    made = torch.empty_strided(spec.shape, spec.stride(), dtype=spec.dtype)
    return made.fill_(float("nan") if spec.dtype.is_floating_point else 1)


def run_function(function: Callable[..., Any], inputs: Sequence[torch.Tensor], config: dict[str, Any] | None = None) -> list[torch.Tensor]:
    """Its results, with all pointwise nodes (at least one) run as regions."""
    graph = trace(function, inputs)
    regions = find_regions(graph, lambda node: False)
    assert regions, graph
    reorder(graph, regions)
    first = {region.nodes[0]: region for region in regions}
    known: dict[Node, Any] = {}
    fed = iter(inputs)
    inside = {n for region in regions for n in region.nodes}
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = next(fed)
        elif node.op == "output":
            return [known[n] for n in node.all_input_nodes]
        elif node in first:
            region = first[node]
            known.update({n: unset(n.meta["val"]) for n in region.outputs})
            run_region(region, [known[n] for n in region.inputs], [known[n] for n in region.outputs], config)
        elif node not in inside:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: known.get(n))
            known[node] = node.target(*args, **kwargs)
    raise AssertionError("no output")


def agree(function: Callable[..., Any], inputs: Sequence[torch.Tensor], config: dict[str, Any] | None = None) -> None:
    """The same dtypes and shapes as torch; the same values too, exactly those of integers and booleans. Floating ones are within a rounding of
    what eager gives, or of what the function gives in float64, as values between halves are not rounded."""
    eager, wide = _results(function, inputs), _results(function, [t.double() if t.is_floating_point() else t for t in inputs])
    for got, expected, exact in zip(run_function(function, inputs, config), eager, wide, strict=True):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        if not expected.dtype.is_floating_point:
            assert torch.equal(got, expected), (got, expected)
            continue
        relative, absolute = TOLERANCE[expected.dtype]
        near = [torch.isclose(got.double(), e.to(got.dtype).double(), relative, absolute, equal_nan=True) for e in (expected, exact)]
        assert (near[0] | near[1]).all(), (got[~(near[0] | near[1])], expected[~(near[0] | near[1])])


def _results(function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    results = function(*inputs)
    return list(results) if isinstance(results, (list, tuple)) else [results]
