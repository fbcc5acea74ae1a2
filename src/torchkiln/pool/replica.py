"""Replica: one engine of a pool, with its device and stream; and a result that may still be computed on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from ..engine.engine import Engine

#: GPU index -> what was recorded on the stream that made a call's inputs.
Ready = Mapping[int, torch.cuda.Event]


@dataclass(frozen=True)
class Result:
    """What a call returned; ``done`` was recorded on the replica's stream behind it, where that is on a GPU."""

    value: Any
    done: torch.cuda.Event | None = None

    def wait(self) -> Any:
        """The value, for the current stream of the caller to use: the GPU waits, the CPU does not."""
        if self.done is not None:
            for tensor in _cuda_tensors(self.value):
                stream = torch.cuda.current_stream(tensor.device)
                stream.wait_event(self.done)
                tensor.record_stream(stream)
        return self.value


class Replica:
    """One engine of a pool. For one caller at a time: the pool sees to it.

    Attributes:
        index: its place in the pool.
        engine: nobody's but the pool's.
        device: where the engine runs.
        stream: on a GPU, the stream its calls run on; None on the CPU.
    """

    def __init__(self, index: int, engine: Engine) -> None:
        self.index, self.engine, self.device = index, engine, engine.device
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if self.stream is not None:
            # The engine was loaded on the current stream.
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any], output_device: torch.device | None) -> Result:
        """Call the engine, on its stream (within ``entered``). Tensors are brought to it from wherever they are; outputs go to ``output_device``
        (None: they stay)."""
        moved_args, moved_kwargs = self.bring((tuple(args), dict(kwargs)))
        value = self.engine(*moved_args, **moved_kwargs)
        if output_device is not None and output_device != self.device:
            value = tree_map(_mover(output_device), value)
        return Result(value, self.record())

    def bring(self, value: Any) -> Any:
        """``value`` with its tensors on the replica's device (within ``entered``)."""
        mark_used(value)
        return tree_map(lambda leaf: leaf.to(self.device, non_blocking=self.stream is not None) if isinstance(leaf, torch.Tensor) else leaf, value)

    def entered(self, ready: Ready) -> AbstractContextManager[Any]:
        """Within the block, work of this thread goes to the replica's device and stream, behind what ``ready`` marks."""
        if self.stream is None:
            for event in ready.values():
                event.synchronize()
            return nullcontext()
        for index, event in ready.items():
            self.stream.wait_event(event)
            # A copy between two GPUs runs on the current stream of its source.
            torch.cuda.current_stream(index).wait_event(event)
        return torch.cuda.stream(self.stream)

    def record(self) -> torch.cuda.Event | None:
        """An event behind all work so far, where the replica is on a GPU."""
        if self.stream is None:
            return None
        event = torch.cuda.Event()
        event.record(self.stream)
        return event

    def __repr__(self) -> str:
        return f"replica {self.index} on {self.device}"


def ready_events(value: Any) -> dict[int, torch.cuda.Event]:
    """An event on the current stream of each GPU that holds a tensor in ``value``: behind it, they are computed."""
    events: dict[int, torch.cuda.Event] = {}
    for tensor in _cuda_tensors(value):
        index = tensor.device.index
        if index not in events:
            events[index] = torch.cuda.Event()
            events[index].record(torch.cuda.current_stream(index))
    return events


def mark_used(value: Any) -> None:
    """Keep the memory of each GPU tensor in ``value``, once it is let go, until the current stream of its GPU is done with it. A copy to another
    device runs there too."""
    for tensor in _cuda_tensors(value):
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def first_device(value: Any) -> torch.device | None:
    """The device of the first tensor in ``value``; None when there is none."""
    return next((leaf.device for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)), None)


def _mover(device: torch.device) -> Callable[[Any], Any]:
    # To and from the CPU this waits for the GPU (in the replica's own thread): no event is recorded there for the caller to wait for.
    return lambda value: value.to(device, non_blocking=value.is_cuda and device.type != "cpu") if isinstance(value, torch.Tensor) else value


def _cuda_tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.is_cuda]
