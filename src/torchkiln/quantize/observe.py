"""observe: run a graph over batches and count what its tensors hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ..errors import UserError
from .histogram import Histogram


class Observer:
    """Runs ``graph_module`` in PyTorch, batch by batch, and keeps a histogram of each of ``tensors`` (node -> name)."""

    def __init__(self, graph_module: GraphModule, tensors: Mapping[Node, str]) -> None:
        self.histograms = {name: Histogram() for name in tensors.values()}
        self._interpreter = _Interpreter(graph_module, tensors, self.histograms)

    def run(self, inputs: Sequence[torch.Tensor]) -> None:
        """One call of the graph. Raises UserError when a tensor is not finite."""
        with torch.inference_mode():
            self._interpreter.run(*inputs)


class _Interpreter(Interpreter):
    def __init__(self, graph_module: GraphModule, tensors: Mapping[Node, str], histograms: Mapping[str, Histogram]) -> None:
        super().__init__(graph_module)
        self._tensors = tensors
        self._histograms = histograms

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        name = self._tensors.get(n)
        if name is not None:
            try:
                self._histograms[name].add(result)
            except UserError as error:
                raise UserError(f"{error} (first at {name})") from None
        return result
