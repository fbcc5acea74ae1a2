"""Strips and the programs that walk them: the counts are those of walking them one by one."""

from __future__ import annotations

import itertools

import pytest

from torchkiln.backends.cuda.tactics.strips import Strips, best_rows

OUTPUTS = [
    Strips(height=13, across=3, columns=2, slots=9, extra=2),
    Strips(height=56, across=32, columns=1, slots=132, extra=0),
    Strips(height=7, across=1, columns=5, slots=3, extra=4),
    Strips(height=1, across=4, columns=1, slots=264, extra=2),
]


def _walked(strips: Strips, rows: int) -> tuple[int, int]:
    """(strips, steps of the busiest slot), dealt out as the kernel does: program p of a tile of columns takes strips p, p + programs, ..."""
    starts = list(itertools.product(range(strips.across), range(0, strips.height, rows)))
    programs = strips.programs(rows)
    busiest = max(len(starts[p::programs]) for p in range(programs)) * (rows + strips.extra)
    grid = programs * strips.columns
    slots = [0] * strips.slots
    for program in range(grid):
        slots[program % strips.slots] += busiest
    return len(starts), max(slots)


@pytest.mark.parametrize("strips", OUTPUTS)
def test_counts_are_those_of_a_walk(strips):
    for rows in range(1, strips.height + 1):
        assert (strips.count(rows), strips.steps(rows)) == _walked(strips, rows)
        assert 1 <= strips.programs(rows) <= strips.count(rows)


@pytest.mark.parametrize("strips", OUTPUTS)
def test_best_rows_end_soonest(strips):
    best = best_rows(strips)
    assert len(best) == min(2, strips.height)
    assert strips.steps(best[0]) == min(strips.steps(rows) for rows in range(1, strips.height + 1))
