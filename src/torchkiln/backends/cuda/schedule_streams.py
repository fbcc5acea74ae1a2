"""schedule_streams: steps on parallel streams.

List scheduling: of the steps that could start, the one with the longest path still before it is next, on the stream where it can start first. Then
what gains less than its waits cost goes back to the first stream. The result depends on nothing but the arguments.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from .step_order import reduced_waits

#: What a wait for another stream costs a step, however long that is done: the launch gap that programmatic dependent launch would have hidden.
WAIT_US = 2.0
#: A step that was not measured.
UNKNOWN_US = 5.0


@dataclass(frozen=True)
class Schedule:
    """Steps in an order in which each comes after those it needs.

    Attributes:
        order: the given steps' numbers, first to run first; ``streams`` and ``waits`` are of these positions, and ``waits`` names positions.
        streams: 0 is the caller's.
        waits: steps of other streams, transitively reduced.
    """

    order: tuple[int, ...]
    streams: tuple[int, ...]
    waits: tuple[tuple[int, ...], ...]

    @property
    def stream_count(self) -> int:
        return max(self.streams, default=0) + 1


def schedule(needs: Sequence[Sequence[int]], times_us: Sequence[float], pinned: Sequence[bool], streams: int) -> Schedule:
    """A Schedule on up to ``streams`` streams; in the given order on one where nothing is gained.

    Args:
        needs: for each step, the earlier ones it must come after.
        times_us: of each step.
        pinned: which steps must be on stream 0.
    """
    count = len(needs)
    in_order = Schedule(tuple(range(count)), (0,) * count, ((),) * count)
    if streams <= 1 or count < 2:
        return in_order
    order, chosen = _list_schedule(needs, times_us, pinned, streams)
    position = {step: at for at, step in enumerate(order)}
    placed_needs = [tuple(position[need] for need in needs[step]) for step in order]
    times = [times_us[step] for step in order]
    chosen = _renumbered(_without_small_branches(placed_needs, times, chosen))
    if not any(chosen) or makespan(placed_needs, times, chosen) >= sum(times):
        return in_order
    return Schedule(tuple(order), tuple(chosen), tuple(reduced_waits(chosen, placed_needs)))


def makespan(needs: Sequence[Sequence[int]], times_us: Sequence[float], streams: Sequence[int]) -> float:
    """Microseconds until the last step is done, as if streams did not slow each other down."""
    done: list[float] = []
    free = [0.0] * (max(streams, default=0) + 1)
    for number, (stream, waits) in enumerate(zip(streams, reduced_waits(streams, needs), strict=True)):
        start = max([free[stream]] + [done[wait] for wait in waits])
        done.append(start + (WAIT_US if waits else 0.0) + times_us[number])
        free[stream] = done[-1]
    return max(done, default=0.0)


def _list_schedule(needs: Sequence[Sequence[int]], times_us: Sequence[float], pinned: Sequence[bool], streams: int) -> tuple[list[int], list[int]]:
    """The order of the steps, and the stream of each in that order."""
    users: list[list[int]] = [[] for _ in needs]
    for step, earlier in enumerate(needs):
        for need in earlier:
            users[need].append(step)
    path = list(times_us)
    for step in reversed(range(len(needs))):
        path[step] += max((path[user] for user in users[step]), default=0.0)
    missing = [len(set(earlier)) for earlier in needs]
    done, stream_of = [0.0] * len(needs), [0] * len(needs)
    free = [0.0] * streams
    tail = [-1] * streams
    ready = [(-path[step], not pinned[step], step) for step in range(len(needs)) if not missing[step]]
    heapq.heapify(ready)
    order = []
    while ready:
        step = heapq.heappop(ready)[-1]

        def start(stream: int, step: int = step) -> tuple[float, bool, int]:
            late = any(stream_of[need] != stream for need in needs[step])
            return max([free[stream]] + [done[need] for need in needs[step]]) + late * WAIT_US, tail[stream] not in needs[step], stream

        at, _, stream = start(0) if pinned[step] else min(map(start, range(streams)))
        stream_of[step], done[step] = stream, at + times_us[step]
        free[stream], tail[stream] = done[step], step
        order.append(step)
        for user in users[step]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, (-path[user], not pinned[user], user))
    return order, [stream_of[step] for step in order]


def _without_small_branches(needs: Sequence[Sequence[int]], times_us: Sequence[float], streams: Sequence[int]) -> list[int]:
    """Branches go back to stream 0, the shortest first, where the whole takes no longer then."""
    kept = list(streams)
    best = makespan(needs, times_us, kept)
    for branch in sorted(_branches(needs, streams), key=lambda steps: (sum(times_us[s] for s in steps), steps)):
        moved = list(kept)
        for step in branch:
            moved[step] = 0
        time = makespan(needs, times_us, moved)
        if time <= best + 1e-9:
            kept, best = moved, min(time, best)
    return kept


def _branches(needs: Sequence[Sequence[int]], streams: Sequence[int]) -> list[list[int]]:
    """Runs of steps on a side stream, of which only the first waits for another stream."""
    found: list[list[int]] = []
    open_branch: dict[int, list[int]] = {}
    for step, stream in enumerate(streams):
        if not stream:
            continue
        if stream not in open_branch or any(streams[need] != stream for need in needs[step]):
            open_branch[stream] = []
            found.append(open_branch[stream])
        open_branch[stream].append(step)
    return found


def _renumbered(streams: Sequence[int]) -> list[int]:
    """Side streams numbered from 1, in the order of their first steps."""
    number = {0: 0}
    return [number.setdefault(stream, len(number)) for stream in streams]
