"""What is done before what, with streams and waits, against the transitive closure of the edges."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from torchkiln.backends.cuda.step_order import MAX_STREAMS, order_of, reduced_waits


@st.composite
def steps(draw):
    """The stream of each step, and earlier steps that it needs."""
    count = draw(st.integers(1, 16))
    streams = [draw(st.integers(0, MAX_STREAMS - 1)) for _ in range(count)]
    needs = [tuple(sorted(draw(st.sets(st.integers(0, step - 1), max_size=3)))) if step else () for step in range(count)]
    return streams, needs


def closure(streams, edges):
    """For each step all that are done before it: by stream order, by edges, and what follows."""
    found = []
    for step, stream in enumerate(streams):
        direct = {i for i in range(step) if streams[i] == stream} | set(edges[step])
        found.append(direct.union(*(found[i] for i in direct)))
    return found


@given(steps())
@settings(deadline=None, max_examples=150)
def test_order_is_the_closure(case):
    streams, waits = case
    before, expected = order_of(streams, waits), closure(streams, waits)
    for j in range(len(streams)):
        assert {i for i in range(len(streams)) if i != j and before(i, j)} == expected[j]


@given(steps())
@settings(deadline=None, max_examples=150)
def test_waits_suffice_and_none_can_go(case):
    streams, needs = case
    waits = reduced_waits(streams, needs)
    done = closure(streams, waits)
    for step, needed in enumerate(needs):
        assert set(needed) <= done[step]
        assert all(streams[wait] != streams[step] and wait < step for wait in waits[step])
        for wait in waits[step]:
            fewer = [tuple(w for w in these if (number, w) != (step, wait)) for number, these in enumerate(waits)]
            assert not set(needed) <= closure(streams, fewer)[step]
