"""ddmin: a smallest subset for which a property holds (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """A subset of ``items``, in their order, for which ``holds``, and for which it holds no more when any one member is taken out.

    ``holds(items)`` must be true; it is not asked.
    """
    found = list(items)
    parts = 2
    while len(found) > 1:
        size = -(-len(found) // parts)
        chunks = [found[i : i + size] for i in range(0, len(found), size)]
        for index, chunk in enumerate(chunks):
            rest = [item for other in (*chunks[:index], *chunks[index + 1 :]) for item in other]
            if len(chunks) > 2 and holds(chunk):
                found, parts = chunk, 2
                break
            if holds(rest):
                found, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(found):
                return found
            parts = min(len(found), 2 * parts)
    return [] if found and holds([]) else found


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
