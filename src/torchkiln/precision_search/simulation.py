"""simulation: assignments run in PyTorch on given inputs, and how far their outputs are from those in float32.

A low precision is simulated: every value is rounded to it where the converted graph has that dtype, and every operator computes in float32. Kernels
of matrix products, softmax and the like do so inside, on every device; and it runs on any device, also where PyTorch has no such kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from ..lower.keep_float32 import moves_only
from ..verify.parity import compare
from ..verify.reference import full_float32
from .assignment import Assignment, Narrowing

_LOW = (torch.float16, torch.bfloat16)


class Simulation:
    """Answers ``error(assignment)``. Holds every intermediate result of one float32 run, so that what an assignment leaves alone is not run again.

    Args:
        inputs: the program's input tensors.
    """

    def __init__(self, narrowing: Narrowing, inputs: Sequence[torch.Tensor]) -> None:
        self._narrowing = narrowing
        graph_module = narrowing.program.graph_module
        self._nodes = {node.name: node for node in graph_module.graph.nodes}
        self._errors: dict[Assignment, float] = {}
        self.runs = 0
        recorder = _Recorder(graph_module)
        with torch.inference_mode(), full_float32():
            self._references = _tensors(recorder.run(*inputs))
        self._values = recorder.values

    def error(self, assignment: Assignment) -> float:
        """The relative L2 error of the outputs (the worst of them); inf where infinities or NaNs arise."""
        if assignment not in self._errors:
            graph_module = self._narrowing.graph(assignment)
            known = {node: self._values[node.name] for node in self._unaffected(graph_module)}
            with torch.inference_mode(), full_float32():
                outputs = _tensors(_Rounded(graph_module).run(initial_env=known))
            self._errors[assignment] = compare(outputs, self._references).relative_error
            self.runs += 1
        return self._errors[assignment]

    def _unaffected(self, graph_module: GraphModule) -> list[Node]:
        """The nodes whose values are those of the float32 run: the same call of the same, unaffected values."""
        found: dict[Node, None] = {}
        for node in graph_module.graph.nodes:
            original = self._nodes.get(node.name)
            if original is None or node.op == "output" or (node.op, node.target) != (original.op, original.target):
                continue
            if all(source in found for source in node.all_input_nodes) and _call(node) == _call(original):
                found[node] = None
        return list(found)


def _call(node: Node) -> Any:
    return map_arg((node.args, dict(node.kwargs)), lambda source: f"%{source.name}")


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


class _Recorder(Interpreter):
    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value
        return value


class _Rounded(Interpreter):
    """Calls with a low operand are made in float32, and what the graph says is low is rounded."""

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function" or moves_only(n):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if not any(_is_low(leaf) for leaf in tree_leaves((args, kwargs))):
            return super().run_node(n)
        args, kwargs = tree_map(lambda leaf: leaf.float() if _is_low(leaf) else leaf, (args, kwargs))
        assert callable(n.target)
        result = n.target(*args, **kwargs)
        dtypes = [value.dtype if isinstance(value, torch.Tensor) else None for value in _leaves(n.meta.get("val"))]
        if isinstance(result, (tuple, list)):
            return type(result)(_rounded(value, dtype) for value, dtype in zip(result, dtypes, strict=True))
        return _rounded(result, dtypes[0])


def _leaves(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _is_low(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in _LOW


def _rounded(value: Any, dtype: torch.dtype | None) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and dtype in _LOW and value.dtype is torch.float32 else value
