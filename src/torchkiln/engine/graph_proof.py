"""graph_proof: which inputs and outputs of a captured graph may be anywhere else in memory, found by trying.

The nodes' parameters say where a graph holds a buffer's address, but not that it holds it nowhere else (in a table in memory, as a part of another
address), nor that what lies there is the buffer: an output may lie where an intermediate result, larger perhaps, was before. So each buffer is
moved, the memory it had is spoiled, and a replay has to give the same bits as before, leaving alone an input and all memory around an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .graph_pointers import GraphPointers, NoPointers

#: A byte that memory is filled with.
_SPOILED = 0xA5
_WRITTEN = "it is written"
#: Most bytes of memory around an output that are tried.
_MOST_AROUND = 1 << 30


def segment_of(address: int) -> tuple[int, int]:
    """Address and bytes of the piece of memory that torch's allocator cut the block at ``address`` from; (0, 0) where it is not torch's."""
    for segment in torch.cuda.memory_snapshot():
        start, size = segment["address"], segment["total_size"]
        if start <= address < start + size:
            return start, size
    return 0, 0


def snapshot(inputs: Sequence[torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    """What ``written`` compares with, afterwards."""
    return [(value._version, value.clone()) for value in inputs]


def written(inputs: Sequence[torch.Tensor], before: Sequence[tuple[int, torch.Tensor]]) -> list[bool]:
    """Which inputs were written since: by an operator of torch, also where it wrote what was there, or by anything that left other values."""
    same = [value._version == version and _equal([_whole(value)], [_whole(copy)]) for value, (version, copy) in zip(inputs, before, strict=True)]
    return [not is_same for is_same in same]


def spoil(value: torch.Tensor) -> list[torch.Tensor]:
    """Other values that a kernel may read instead without harm, as far as can be told; none where every element is the same integer."""
    if value.dtype == torch.bool:
        return [~value]
    if not value.is_floating_point():
        other = value.reshape(-1).roll(1).reshape(value.shape)  # an index stays within its table
        return [] if torch.equal(other, value) else [other]
    # Several, because an operator may take NaN for any number, ignore what is added to all elements, or give 0 for all that is negative.
    ramp = (torch.arange(value.numel(), device=value.device) % 7 + 1).reshape(value.shape)
    return [torch.full_like(value, float("nan")), *[(value.double() + sign * ramp).to(value.dtype) for sign in (1, -1)]]


def prove(graph: Any, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], is_written: Sequence[bool]) -> tuple[GraphPointers, list[str]]:
    """The graph's pointers to ``inputs`` and then ``outputs``, and for each why it has to stay where it is; "" where it may be moved.

    Replays the graph on the current stream and waits for it. Afterwards ``inputs`` hold what they held, and the graph has its own addresses again.
    Raises NoPointers where nothing may be moved: then the graph has to be instantiated again.

    Args:
        graph: captured with keep_graph and instantiated; not running.
        inputs: the graph's own, contiguous, with values that are no harm to read.
        outputs: the graph's own.
        is_written: for each input, whether it is known that the graph writes it.
    """
    tensors = [*inputs, *outputs]
    buffers = [_buffer(tensor) for tensor in tensors]
    shared = [any(_overlap(one, two) for j, two in enumerate(buffers) if j != i) for i, one in enumerate(buffers)]
    pointers = GraphPointers(graph, [(start, 0 if is_shared else size) for (start, size), is_shared in zip(buffers, shared, strict=True)])
    reasons = ["shares memory with another" if is_shared else problem for is_shared, problem in zip(shared, pointers.problems, strict=True)]
    reasons = [_WRITTEN if index < len(inputs) and is_written[index] else reason for index, reason in enumerate(reasons)]
    if all(reasons):
        return pointers, reasons
    trial = _Trial(graph, pointers, [start for start, _ in buffers], inputs, outputs)
    for index in range(len(tensors)):
        if not reasons[index]:
            reasons[index] = trial.move_input(index) if index < len(inputs) else trial.move_output(index - len(inputs))
    trial.move_together([index for index, reason in enumerate(reasons) if not reason])
    torch.cuda.current_stream().synchronize()
    return pointers, reasons


class _Trial:
    """Replays with buffers elsewhere. Buffers are numbered as the pointers are: inputs, then outputs."""

    def __init__(self, graph: Any, pointers: GraphPointers, own: list[int], inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        self._graph, self._pointers, self._own, self._inputs, self._outputs = graph, pointers, own, inputs, outputs
        self._expected = self._replay({})
        if not _equal(self._expected, self._replay({})):
            raise NoPointers("two replays differ")

    def move_input(self, number: int) -> str:
        own = self._inputs[number]
        values, moved = own.clone(), own.clone()
        others = spoil(values)
        if not others:
            return "its values are all alike: nothing shows where it is read"
        try:
            for other in others:
                own.copy_(other)
                if not _equal(self._expected, self._replay({number: moved})):
                    return "it is also read in a way that the parameters of kernels do not show"
                if not _equal([_whole(values)], [_whole(moved)]):
                    return _WRITTEN
            return ""
        finally:
            own.copy_(values)

    def move_output(self, number: int) -> str:
        own = self._outputs[number]
        index, size = len(self._inputs) + number, own.untyped_storage().nbytes()
        if not _fills_storage(own):
            return "it is a part of something else"
        if own.is_conj() or own.is_neg():
            return "its memory holds conjugates or negatives of its values"  # a new tensor would lack the bit that says so
        start, bytes_around = segment_of(self._own[index])
        if not bytes_around:
            return "its memory is not of torch's allocator"
        if bytes_around > max(_MOST_AROUND, 2 * size):
            return f"its memory is cut from a piece of {bytes_around >> 20} MiB, too large to try"
        # Whatever else was in the output's place is within the same segment; moved by mistake, it is within this copy of it.
        try:
            around = torch.full((bytes_around,), _SPOILED, dtype=torch.uint8, device=own.device)
        except torch.OutOfMemoryError:
            return "there is no memory to try it"
        before, moved, after = around.split([place := self._own[index] - start, size, bytes_around - place - size])
        _whole(own).fill_(_SPOILED)
        found = self._replay({index: moved})
        _whole(own).copy_(self._expected[number])
        if not _equal(self._expected, found):
            return "it is also written in a way that the parameters of kernels do not show"
        if not (bool((before == _SPOILED).all()) and bool((after == _SPOILED).all())):
            return "something larger was in its place before"
        return ""

    def move_together(self, indices: Sequence[int]) -> None:
        """Raises NoPointers when what may be moved alone may not be moved together."""
        moved: dict[int, torch.Tensor] = {}
        values = [own.clone() for own in self._inputs]
        try:
            for index in indices:
                if index < len(values):
                    moved[index] = values[index].clone()
                    self._inputs[index].copy_(spoil(values[index])[0])
                else:
                    own = _whole(self._outputs[index - len(values)])
                    moved[index] = torch.full_like(own, _SPOILED)
                    own.fill_(_SPOILED)
            found = self._replay(moved)
        finally:
            for own, value in zip(self._inputs, values, strict=True):
                own.copy_(value)
        self._pointers.bind(self._own)
        if not _equal(self._expected, found):
            raise NoPointers("results differ when everything is elsewhere")

    def _replay(self, moved: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """The outputs' bytes afterwards, with these buffers elsewhere."""
        self._pointers.bind([moved[index].data_ptr() if index in moved else own for index, own in enumerate(self._own)])
        self._graph.replay()
        first = len(self._inputs)
        return [_whole(moved.get(first + number, output)).clone() for number, output in enumerate(self._outputs)]


def _buffer(tensor: torch.Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _overlap(one: tuple[int, int], two: tuple[int, int]) -> bool:
    return one[0] < two[0] + two[1] and two[0] < one[0] + one[1]


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes a tensor covers: of a contiguous part of a larger storage that part, otherwise the whole storage."""
    if tensor.dtype == torch.uint8 and tensor.dim() == 1 and tensor.is_contiguous():
        return tensor
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _fills_storage(tensor: torch.Tensor) -> bool:
    """Whether the tensor's elements, each at a place of its own, are all that its storage holds."""
    if tensor.storage_offset() or tensor.numel() * tensor.itemsize != tensor.untyped_storage().nbytes():
        return False
    return torch.empty_like(tensor).stride() == tensor.stride()  # the same where elements lie densely


def _equal(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
