"""Steps on parallel streams: what needs what stays in order, short branches stay where they are, the same comes out every time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkiln.backends.cuda.schedule_streams import WAIT_US, makespan, schedule
from torchkiln.backends.cuda.step_order import order_of


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 20))
    needs = [tuple(sorted(draw(st.sets(st.integers(max(0, step - 6), step - 1), max_size=2)))) if step else () for step in range(count)]
    times = [draw(st.sampled_from([0.0, 1.0, 4.0, 30.0, 100.0])) for _ in range(count)]
    return needs, times, [draw(st.booleans()) for _ in range(count)], draw(st.integers(1, 4))


@given(graphs())
@settings(deadline=None, max_examples=150)
def test_random_graphs(case):
    needs, times, pinned, streams = case
    found = schedule(needs, times, pinned, streams)
    assert found == schedule(needs, times, pinned, streams)
    assert sorted(found.order) == list(range(len(needs)))
    assert found.stream_count <= streams
    assert set(found.streams) == set(range(found.stream_count))
    at = {step: position for position, step in enumerate(found.order)}
    before = order_of(found.streams, found.waits)
    for step, needed in enumerate(needs):
        assert all(at[need] < at[step] and before(at[need], at[step]) for need in needed)
        assert found.streams[at[step]] == 0 or not pinned[step]
    placed = [[at[need] for need in needs[step]] for step in found.order]
    if found.stream_count > 1:
        assert makespan(placed, [times[step] for step in found.order], found.streams) < sum(times)
    else:
        assert found.order == tuple(range(len(needs)))


def diamond(*branches):
    """A step, parallel chains of so many steps of such lengths, and a step after them all."""
    needs, times, ends = [()], [10.0], []
    for branch in branches:
        last = 0
        for us in branch:
            needs.append((last,))
            times.append(us)
            last = len(times) - 1
        ends.append(last)
    return [*needs, tuple(ends)], [*times, 10.0]


def test_two_long_branches():
    needs, times = diamond([20.0, 20.0], [25.0])
    found = schedule(needs, times, [False] * 5, 4)
    assert found.stream_count == 2
    stream = {step: found.streams[at] for at, step in enumerate(found.order)}
    assert stream[1] == stream[2] == stream[0] == stream[4] == 0  # the longest path stays where it is
    assert stream[3] == 1
    at = found.order.index
    assert {at(step): found.waits[at(step)] for step in range(5) if found.waits[at(step)]} == {at(3): (at(0),), at(4): (at(3),)}


def test_a_short_branch_is_not_worth_its_waits():
    needs, times = diamond([50.0], [WAIT_US * 0.4])
    found = schedule(needs, times, [False] * 4, 4)
    assert (found.order, found.streams) == ((0, 1, 2, 3), (0,) * 4)


def test_as_many_streams_as_branches_up_to_the_limit():
    needs, times = diamond(*[[50.0, 50.0]] * 5)
    for limit in (1, 2, 3, 4):
        assert schedule(needs, times, [False] * len(times), limit).stream_count == limit


def test_a_chain_is_one_stream():
    found = schedule([(), (0,), (1,), (0, 2)], [50.0] * 4, [False] * 4, 4)
    assert (found.stream_count, found.waits) == (1, ((),) * 4)


@pytest.mark.parametrize("which", [0, 1])
def test_pinned_steps_stay_and_the_other_branch_moves(which):
    needs, times = diamond([50.0], [50.0])
    found = schedule(needs, times, [step == 1 + which for step in range(4)], 4)
    stream = {step: found.streams[at] for at, step in enumerate(found.order)}
    assert (stream[1 + which], stream[2 - which]) == (0, 1)
