"""ddmin: a smallest subset for which a property holds (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """A subset of ``items``, in their order, for which ``holds``, and for which it holds no more when any one member is taken out.

    Parts of halving sizes are left out where it holds without them, the last first. ``holds(items)`` must be true; it is not asked.
    """
    found = list(items)
    size = -(-len(found) // 2)
    while found:
        before, end = len(found), len(found)
        while end > 0:  # a sweep goes on where it left something out: beginning again asks as often as the square of what is needed
            start = max(end - size, 0)
            rest = found[:start] + found[end:]
            if holds(rest):
                found = rest
            end = start
        if size == 1 and len(found) == before:
            break
        size = -(-size // 2)
    return found


def boundary(count: int, holds: Callable[[int], bool]) -> int:
    """A number ``i`` of 1 to ``count`` with ``holds(i)`` and not ``holds(i - 1)``, by bisection; the only one where ``holds`` is monotone.

    ``holds(count)`` must be true and ``holds(0)`` false; neither is asked.
    """
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
