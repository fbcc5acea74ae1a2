"""greedy: in which order units are widened, the most error for the least time first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """A unit in one precision: the error of the output with only this unit in it, and what the unit takes."""

    name: str
    error: float
    time_us: float


def widening_order(units: Sequence[Sequence[Level]]) -> list[tuple[int, ...]]:
    """Levels of all units, from all at their narrowest to all at their widest, one step of one unit at a time.

    Args:
        units: the levels of each unit, narrowest first; the last is float32 with error 0.

    Errors of units add up as squares, as rounding errors do that know nothing of each other. A step that removes an error that is not finite comes
    before all others.
    """
    state = [0] * len(units)
    path = [tuple(state)]
    while True:
        steps = [index for index, levels in enumerate(units) if state[index] + 1 < len(levels)]
        if not steps:
            return path
        best = max(steps, key=lambda index: _worth(units[index], state[index]))
        state[best] += 1
        path.append(tuple(state))


def _worth(levels: Sequence[Level], at: int) -> tuple[bool, float]:
    now, wider = levels[at], levels[at + 1]
    # A step that costs nothing as measured costs little: times are noisy.
    cost = max(wider.time_us - now.time_us, 0.01 * now.time_us, 1e-3)
    if not math.isfinite(now.error):
        return True, 1 / cost
    return False, (now.error**2 - min(wider.error, now.error) ** 2) / cost


def total_us(units: Sequence[Sequence[Level]], state: Sequence[int]) -> float:
    """What the units take at these levels."""
    return sum(levels[at].time_us for levels, at in zip(units, state, strict=True))
