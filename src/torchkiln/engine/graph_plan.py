"""graph_plan: a captured graph, and how one combination of input shapes is served with it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch

from ..log import STEPS, log
from .graph_pointers import GraphPointers, NoPointers

Key = tuple[torch.Size, ...]

#: Up to here one copy after another; beyond, one call for all (it costs the CPU about as much as two copies).
FEW = 2

#: Kernels were chosen, cuBLAS's and TensorRT's among them, for memory that begins at a multiple of this: the graph's own does.
ALIGNMENT_BYTES = 256


class Captured:
    """A graph with the memory it reads and writes.

    Attributes:
        key: the shapes of ``inputs``.
        rows: the rows of the inputs that may hold anything but zeros, where it serves smaller batches; otherwise 0.
        note: which inputs and outputs are copied at every call, and why; empty where none has to be.
    """

    def __init__(self, key: Key, graph: torch.cuda.CUDAGraph, inputs: Sequence[torch.Tensor], outputs: Sequence[Any]) -> None:
        self.key, self.graph, self.inputs, self.outputs, self.rows = key, graph, tuple(inputs), list(outputs), 0
        self.note = ""
        self.pointers: GraphPointers | None = None
        self.tensors = [value for value in outputs if isinstance(value, torch.Tensor)]
        #: Where the graph's own inputs and output tensors are (their storages), and which inputs, and which output tensors, may be elsewhere.
        self.own = [value.untyped_storage().data_ptr() for value in (*self.inputs, *self.tensors)]
        self.movable_inputs: tuple[int, ...] = ()
        self.movable_outputs: tuple[int, ...] = ()

    def set_pointers(self, pointers: GraphPointers, reasons: Sequence[str]) -> None:
        """From now on, the inputs and output tensors without a reason against it may be elsewhere."""
        first = len(self.inputs)
        self.movable_inputs = tuple(index for index, reason in enumerate(reasons[:first]) if not reason)
        self.movable_outputs = tuple(index for index, reason in enumerate(reasons[first:]) if not reason)
        names = [f"input {i}" for i in range(first)] + [f"output {i}" for i in range(len(self.tensors))]
        self.note = "; ".join(f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True) if reason)
        self.pointers = pointers if self.movable_inputs or self.movable_outputs else None

    def bind(self, addresses: list[int]) -> bool:
        """Point the graph to these addresses of its inputs and outputs; False, and its own for good, where the driver refuses."""
        if self.pointers is None:
            return True
        try:
            self.pointers.bind(addresses)
        except NoPointers as error:
            log(STEPS, "CUDA graph: inputs and outputs are copied from now on: %s", error)
            self.pointers, self.movable_inputs, self.movable_outputs = None, (), ()
            self.graph.instantiate()
            return False
        return True

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

    __slots__ = ("captured", "inputs", "outputs", "rows", "tensors", "whole")

    def __init__(self, captured: Captured, inputs: Sequence[torch.Tensor], outputs: Sequence[Any], rows: int = 0) -> None:
        self.captured, self.inputs, self.outputs, self.rows = captured, tuple(inputs), tuple(outputs), rows
        self.tensors = [value for value in outputs if isinstance(value, torch.Tensor)]
        self.whole = all(mine is own for mine, own in zip(inputs, captured.inputs, strict=True))

    def replay(self, inputs: Sequence[torch.Tensor], static: bool, lent: Container[int] = ()) -> Sequence[Any]:
        """Run the graph on a call's inputs. The outputs are the graph's own with ``static``, otherwise the caller's.

        Args:
            lent: storages (their addresses) that callers may hold although graphs write there: an input in one of them is copied.
        """
        captured = self.captured
        if len(inputs) > 1:
            inputs = self._apart(inputs)
        if captured.pointers is not None and self.whole:
            return self._replay_in_place(inputs, static, lent)
        captured.bind(captured.own)
        self.load(inputs)
        captured.graph.replay()
        return self.outputs if static else self.fresh_outputs()

    def _apart(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """``inputs``, of which one that lies in the graph's own memory for another is a copy: it would be overwritten before it is read."""
        count = len(inputs)
        own = dict(zip(self.captured.own[:count], range(count), strict=True))
        return [value if own.get(value.untyped_storage().data_ptr(), index) == index else value.clone() for index, value in enumerate(inputs)]

    def _replay_in_place(self, inputs: Sequence[torch.Tensor], static: bool, lent: Container[int]) -> Sequence[Any]:
        captured, own = self.captured, self.inputs
        addresses = captured.own.copy()
        copied = list(inputs)
        for index in captured.movable_inputs:
            value, target = inputs[index], own[index]
            if value is target:
                continue
            address = _address(value, target)
            if address and not (lent and value.untyped_storage().data_ptr() in lent):
                addresses[index] = address
                copied[index] = target  # nothing to do
        fresh: dict[int, torch.Tensor] = {}
        if not static:
            first = len(own)
            for index in captured.movable_outputs:
                tensor = fresh[index] = torch.empty_like(self.tensors[index])
                addresses[first + index] = tensor.data_ptr()
        if not captured.bind(addresses):
            return self.replay(inputs, static, lent)
        self.load(copied)
        captured.graph.replay()
        return self.outputs if static else self.fresh_outputs(fresh)

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

    def fresh_outputs(self, written: dict[int, torch.Tensor] | None = None) -> Sequence[Any]:
        """The outputs in tensors of the caller's; ``written`` are those that the graph wrote there itself."""
        tensors = self.tensors
        if written and len(written) == len(tensors):
            copies = list(written.values())
        elif written:
            copies = [written[index] if index in written else tensor.clone() for index, tensor in enumerate(tensors)]
        elif len(tensors) <= FEW:
            copies = [tensor.clone() for tensor in tensors]
        else:
            copies = [torch.empty_like(tensor) for tensor in tensors]
            torch._foreach_copy_(copies, tensors)
        if len(tensors) == len(self.outputs):
            return copies
        copied = iter(copies)
        return [next(copied) if isinstance(output, torch.Tensor) else output for output in self.outputs]


def _address(value: torch.Tensor, own: torch.Tensor) -> int:
    """Where kernels that read ``own`` can read ``value`` instead, of the same shape; 0 where they cannot."""
    if value.dtype is not own.dtype or value.get_device() != own.get_device() or not value.is_contiguous() or value.is_conj() or value.is_neg():
        return 0
    address = value.data_ptr()
    return address if address % ALIGNMENT_BYTES == 0 else 0
