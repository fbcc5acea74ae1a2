"""Schedule: runs an engine's segments in order over numbered value slots, dropping each value after its last use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..backends.registry import get_backend
from .contents import EngineContents, EngineSegment

if TYPE_CHECKING:
    from ..backends.contract import Runner


def load_segments(contents: EngineContents, device: torch.device, num_threads: int | None) -> list[Runner]:
    """A Runner for each segment. Raises what the backends' ``load`` raises."""
    return [get_backend(s.backend).load(s.artifact, device, num_threads) for s in contents.segments]


class Schedule:
    """The running order of an engine."""

    def __init__(self, contents: EngineContents, runners: Sequence[Runner]) -> None:
        self._runners = list(runners)
        self._segments = contents.segments
        self._slot_count = contents.slot_count
        self._input_count = len(contents.inputs)
        self._output_slots = contents.output_slots
        last_use = _last_uses(contents)
        self._steps = [
            (runner, segment.inputs, segment.outputs, tuple(last_use[index]))
            for index, (runner, segment) in enumerate(zip(runners, contents.segments, strict=True))
        ]
        self._batch_buckets: tuple[int, ...] = ()
        if _is_whole(contents):
            # One segment that takes the inputs and gives the outputs as they are: nothing to schedule.
            self.run: Any = self._runners[0]
            if _is_batch_first(contents):
                self._batch_buckets = tuple(getattr(self.run, "batch_buckets", ()))
        else:
            self.run = self._run_steps

    @property
    def runners(self) -> list[Runner]:
        return self._runners

    @property
    def batch_buckets(self) -> tuple[int, ...]:
        """The batch sizes to capture, in place of every size that comes: those of a backend that names them, where it has the schedule to itself and
        nothing varies but one batch, dimension 0 of every input. In naming them it says that no row of an output depends on another row's inputs."""
        return self._batch_buckets

    def capture_blocker(self) -> str:
        """Why the schedule cannot be captured into a CUDA graph: '' when it can."""
        for segment, runner in zip(self._segments, self._runners, strict=True):
            blocker = getattr(runner, "capture_blocker", None)
            if blocker:
                return f"{segment.name} ({segment.backend}): {blocker}"
        return ""

    def _run_steps(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        slots: list[Any] = [*inputs, *[None] * (self._slot_count - self._input_count)]
        for runner, sources, targets, dead in self._steps:
            for slot, value in zip(targets, runner([slots[s] for s in sources]), strict=True):
                slots[slot] = value
            for slot in dead:
                slots[slot] = None
        return [slots[s] for s in self._output_slots]


def _is_whole(contents: EngineContents) -> bool:
    if len(contents.segments) != 1:
        return False
    segment: EngineSegment = contents.segments[0]
    return segment.inputs == tuple(range(len(contents.inputs))) and segment.outputs == contents.output_slots


def _is_batch_first(contents: EngineContents) -> bool:
    if any(spec.dynamic_dims != (0,) for spec in contents.inputs):
        return False
    batch = {(index, 0) for index in range(len(contents.inputs))}
    return len(batch) == 1 or any(batch == set(group) for group in contents.equal_dims)


def _last_uses(contents: EngineContents) -> list[list[int]]:
    """For each segment, the slots nothing reads after it."""
    dead: list[list[int]] = [[] for _ in contents.segments]
    seen = set(contents.output_slots)
    for index in reversed(range(len(contents.segments))):
        segment = contents.segments[index]
        for slot in (*segment.inputs, *segment.outputs):
            if slot not in seen:
                seen.add(slot)
                dead[index].append(slot)
    return dead
