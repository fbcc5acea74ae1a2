"""step_order: which steps of a plan are done before which others start: program order on a stream, waits between streams, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: More streams were never worth their waits.
MAX_STREAMS = 4


def done_before(streams: Sequence[int], waits: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """For each step and each stream, the last step of that stream that is done before the step starts (-1: none).

    Args:
        streams: of each step, below MAX_STREAMS.
        waits: of each step, the steps that it waits for, all of lower numbers.
    """
    last = [-1] * MAX_STREAMS
    found: list[tuple[int, ...]] = []
    for number, stream in enumerate(streams):
        clock = [-1] * MAX_STREAMS
        for earlier in (last[stream], *waits[number]):
            if earlier >= 0:
                clock = [max(pair) for pair in zip(clock, found[earlier], strict=True)]
                clock[streams[earlier]] = max(clock[streams[earlier]], earlier)
        found.append(tuple(clock))
        last[stream] = number
    return found


def order_of(streams: Sequence[int], waits: Sequence[Sequence[int]]) -> Callable[[int, int], bool]:
    """``before(i, j)``: whether step i is done before step j starts."""
    done = done_before(streams, waits)
    return lambda i, j: done[j][streams[i]] >= i


def reduced_waits(streams: Sequence[int], needs: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """For each step the fewest steps of other streams that it must wait for, so that all that it ``needs`` are done before it."""
    last = [-1] * MAX_STREAMS
    done: list[list[int]] = []
    waits: list[tuple[int, ...]] = []
    for number, stream in enumerate(streams):
        clock = [-1] * MAX_STREAMS
        if last[stream] >= 0:
            clock = list(done[last[stream]])
            clock[stream] = last[stream]
        mine = []
        # The latest first: what it waited for itself need not be waited for again.
        for need in sorted(needs[number], reverse=True):
            if clock[streams[need]] < need:
                mine.append(need)
                clock = [max(pair) for pair in zip(clock, done[need], strict=True)]
                clock[streams[need]] = max(clock[streams[need]], need)
        done.append(clock)
        waits.append(tuple(sorted(mine)))
        last[stream] = number
    return waits
