"""ddmin on properties whose smallest sets are known."""

from __future__ import annotations

import random

import pytest

from torchkiln.precision_search.ddmin import boundary, ddmin


@pytest.mark.parametrize("needed", [{0}, {22}, {3, 17}, {0, 1, 2}, set(range(0, 23, 2)), set(range(23))])
def test_it_finds_exactly_what_is_needed(needed: set[int]) -> None:
    asked = []

    def holds(items) -> bool:
        asked.append(1)
        return needed <= set(items)

    assert ddmin(range(23), holds) == sorted(needed)
    assert len(asked) < 4 * 23


def test_no_member_of_any_result_can_be_left_out() -> None:
    draw = random.Random(5)
    for _ in range(20):
        ways = [set(draw.sample(range(14), draw.randint(1, 5))) for _ in range(4)]  # several sets suffice, each alone
        holds = lambda items, ways=ways: any(way <= set(items) for way in ways)  # noqa: E731
        found = ddmin(range(14), holds)
        assert holds(found)
        assert not any(holds([item for item in found if item != left]) for left in found)


def test_what_holds_of_nothing_needs_nothing() -> None:
    assert ddmin([4], lambda items: True) == []
    assert ddmin([], lambda items: True) == []


@pytest.mark.parametrize("first", [1, 2, 7, 12])
def test_boundary(first: int) -> None:
    assert boundary(12, lambda count: count >= first) == first
