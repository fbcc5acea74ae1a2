"""times: what each unit takes in an engine that was built."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ..backends.registry import get_backend
from ..partition.partition import TORCH
from ..race.attempt import Attempt
from .units import Unit

_CALLS = 3
BY_BACKEND = "the backend's own counters"
BY_SHARE = "whole engines, divided as PyTorch's times are"


def unit_times(attempt: Attempt, units: Sequence[Unit], shares: Sequence[float], num_threads: int | None) -> tuple[list[float], str]:
    """Microseconds of each unit, which sum to the engine's median, and where they come from.

    Args:
        shares: each unit's part of the time, for backends that do not count (see ``torch_shares``).
    """
    counted: dict[str, float] = {}
    for step, segment in zip(attempt.steps, attempt.contents.segments, strict=True):
        layer_times = getattr(get_backend(step.backend), "layer_times", None)
        found = layer_times(segment.artifact, step.segment.example_inputs, num_threads) if layer_times is not None and step.backend != TORCH else {}
        if not found:
            return [attempt.median_us * share for share in shares], BY_SHARE
        counted |= found
    own = [sum(counted.get(node, 0.0) for node in unit.nodes) for unit in units]
    total = sum(own)
    if total <= 0:
        return [attempt.median_us * share for share in shares], BY_SHARE
    return [attempt.median_us * us / total for us in own], BY_BACKEND


def torch_shares(graph_module: GraphModule, inputs: Sequence[torch.Tensor], units: Sequence[Unit]) -> list[float]:
    """Each unit's part of the graph's time in PyTorch, in float32: the least of a few calls."""
    least: dict[str, float] = {}
    for _ in range(_CALLS):
        timer = _Timer(graph_module)
        with torch.inference_mode():
            timer.run(*inputs)
        for name, seconds in timer.seconds.items():
            least[name] = min(seconds, least.get(name, seconds))
    own = [sum(least.get(node, 0.0) for node in unit.nodes) for unit in units]
    total = sum(own) or 1.0
    return [seconds / total for seconds in own]


class _Timer(Interpreter):
    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.seconds: dict[str, float] = {}
        self._on_gpu = any(isinstance(v := n.meta.get("val"), torch.Tensor) and v.device.type == "cuda" for n in graph_module.graph.nodes)

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        self._synchronize()
        start = time.perf_counter()
        value = super().run_node(n)
        self._synchronize()
        self.seconds[n.name] = time.perf_counter() - start
        return value

    def _synchronize(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
