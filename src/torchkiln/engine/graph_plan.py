"""graph_plan: a captured graph, and how one combination of input shapes is served with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Key = tuple[torch.Size, ...]

#: Up to here one copy after another; beyond, one call for all (it costs the CPU about as much as two copies).
FEW = 2


class Captured:
    """A graph with the memory it reads and writes.

    Attributes:
        key: the shapes of ``inputs``.
        rows: the rows of the inputs that may hold anything but zeros, where it serves smaller batches; otherwise 0.
    """

    def __init__(self, key: Key, graph: torch.cuda.CUDAGraph, inputs: Sequence[torch.Tensor], outputs: Sequence[Any]) -> None:
        self.key, self.graph, self.inputs, self.outputs, self.rows = key, graph, tuple(inputs), list(outputs), 0

    def fill_rows(self, rows: int) -> None:
        """The first ``rows`` rows are about to be written: rows that were, and are not now, become zeros."""
        if rows < self.rows:
            for own in self.inputs:
                own[rows : self.rows].zero_()
        self.rows = rows


class Plan:
    """One combination of input shapes.

    Attributes:
        inputs: what a call's inputs are copied into: the graph's own, or the first rows of them.
        outputs: what the graph writes for them; the ones that are no tensors are sizes, which the shapes fix.
    """

    __slots__ = ("captured", "inputs", "outputs", "rows", "tensors")

    def __init__(self, captured: Captured, inputs: Sequence[torch.Tensor], outputs: Sequence[Any], rows: int = 0) -> None:
        self.captured, self.inputs, self.outputs, self.rows = captured, tuple(inputs), tuple(outputs), rows
        self.tensors = [value for value in outputs if isinstance(value, torch.Tensor)]

    def load(self, inputs: Sequence[torch.Tensor]) -> None:
        """Copy a call's inputs in; those that are the graph's own are there already."""
        captured = self.captured
        if self.rows != captured.rows:
            captured.fill_rows(self.rows)
        own = self.inputs
        if len(own) <= FEW:
            for target, value in zip(own, inputs):  # noqa: B905 (the same number: they were found by their shapes)
                if target is not value:
                    target.copy_(value)
            return
        pairs = [(target, value) for target, value in zip(own, inputs, strict=True) if target is not value]
        if len(pairs) > FEW:
            torch._foreach_copy_([target for target, _ in pairs], [value for _, value in pairs])
        else:
            for target, value in pairs:
                target.copy_(value)

    def fresh_outputs(self) -> Sequence[Any]:
        """The outputs in tensors of the caller's."""
        tensors = self.tensors
        if len(tensors) <= FEW:
            copies = [tensor.clone() for tensor in tensors]
        else:
            copies = [torch.empty_like(tensor) for tensor in tensors]
            torch._foreach_copy_(copies, tensors)
        if len(tensors) == len(self.outputs):
            return copies
        copied = iter(copies)
        return [next(copied) if isinstance(output, torch.Tensor) else output for output in self.outputs]
