"""dependencies: which steps a step must come after, from the memory that they read and write."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from .recipe import TensorSpec


@dataclass(frozen=True)
class Access:
    """A step touches memory.

    Attributes:
        memory: what it lies in: equal for accesses of the same memory.
        offset: elements from its start.
        spec: which elements; None: all of it.
    """

    memory: Hashable
    writes: bool
    offset: int = 0
    spec: TensorSpec | None = None


def dependencies(accesses: Sequence[Sequence[Access]]) -> list[tuple[int, ...]]:
    """For each step the earlier ones that it must come after: they write what it touches, or touch what it writes."""
    seen: dict[Hashable, list[tuple[int, Access]]] = {}
    found = []
    for number, touched in enumerate(accesses):
        needs = set()
        for access in touched:
            for earlier, other in seen.get(access.memory, ()):
                if (access.writes or other.writes) and earlier not in needs and may_overlap(access, other):
                    needs.add(earlier)
        for access in touched:
            seen.setdefault(access.memory, []).append((number, access))
        found.append(tuple(sorted(needs)))
    return found


def may_overlap(a: Access, b: Access) -> bool:
    """Whether two accesses of the same memory may have an element in common. False is certain: the ranges are apart, or the places within rows
    are, as those of two parts of a concatenation."""
    if a.spec is None or b.spec is None:
        return True
    if not a.spec.numel or not b.spec.numel:
        return False
    if a.offset + a.spec.span <= b.offset or b.offset + b.spec.span <= a.offset:
        return False
    for row in {stride for spec in (a.spec, b.spec) for stride, size in zip(spec.strides, spec.shape, strict=True) if size > 1 and stride > 1}:
        first, second = _within(a, row), _within(b, row)
        if first is not None and second is not None and (first[1] <= second[0] or second[1] <= first[0]):
            return False
    return True


def _within(access: Access, row: int) -> tuple[int, int] | None:
    """The range of its elements' places modulo ``row``; None when it goes around."""
    assert access.spec is not None
    inner = sum((size - 1) * stride for size, stride in zip(access.spec.shape, access.spec.strides, strict=True) if stride % row)
    start = access.offset % row
    return (start, start + inner + 1) if start + inner < row else None
