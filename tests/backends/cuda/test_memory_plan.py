"""The memory plan: live tensors never overlap, and the arena is small."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkiln.backends.cuda.memory_plan import ALIGNMENT, Buffer, Handover, find_conflicts, lower_bound, plan_memory

SIZES = st.one_of(st.integers(0, 5000), st.sampled_from([0, 256, 512, 4096]))


@st.composite
def one_stream(draw):
    steps = draw(st.integers(1, 20))
    found = []
    for _ in range(draw(st.integers(0, 25))):
        touched = draw(st.lists(st.integers(0, steps - 1), min_size=1, max_size=4))
        found.append(Buffer(draw(SIZES), min(touched), max(touched), tuple(touched)))
    return found


@st.composite
def several_streams(draw):
    """Buffers, and the steps that are done before each step: by stream order and random waits, closed transitively."""
    steps = draw(st.integers(1, 14))
    streams = [draw(st.integers(0, 2)) for _ in range(steps)]
    before = []
    for step in range(steps):
        direct = {i for i in range(step) if streams[i] == streams[step]}
        if step:
            direct |= set(draw(st.lists(st.integers(0, step - 1), max_size=2)))
        before.append(direct.union(*(before[i] for i in direct)))
    found = []
    for _ in range(draw(st.integers(0, 15))):
        touched = draw(st.lists(st.integers(0, steps - 1), min_size=1, max_size=4))
        found.append(Buffer(draw(SIZES), min(touched), max(touched), tuple(touched)))
    return found, before


def rounded(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


def check_placement(buffers, placement, live_together):
    """Written without the module's own idea of conflicts."""
    assert len(placement.offsets) == len(buffers)
    assert all(offset % ALIGNMENT == 0 and offset >= 0 for offset in placement.offsets)
    assert all(offset + b.size_bytes <= placement.arena_bytes for offset, b in zip(placement.offsets, buffers, strict=True) if b.size_bytes)
    assert placement.tensor_bytes == sum(rounded(b.size_bytes) for b in buffers)
    assert lower_bound(buffers) <= placement.arena_bytes <= placement.tensor_bytes
    for (a, at), (b, bt) in itertools.combinations(zip(buffers, placement.offsets, strict=True), 2):
        if live_together(a, b):
            assert at + a.size_bytes <= bt or bt + b.size_bytes <= at or not a.size_bytes or not b.size_bytes, (a, at, b, bt)


@given(one_stream())
@settings(deadline=None, max_examples=150)
def test_live_tensors_do_not_overlap(buffers):
    check_placement(buffers, plan_memory(buffers), lambda a, b: a.first_step <= b.last_step and b.first_step <= a.last_step)


@given(several_streams())
@settings(deadline=None, max_examples=150)
def test_live_tensors_do_not_overlap_with_streams(case):
    buffers, before = case

    def together(a, b):
        a_first = all(i in before[j] for i in a.steps for j in b.steps)
        return not a_first and not all(j in before[i] for i in a.steps for j in b.steps)

    check_placement(buffers, plan_memory(buffers, lambda i, j: i in before[j]), together)


@st.composite
def programs(draw):
    """Operations on streams, each of which writes a tensor and reads some; which tensors it could write over; and what is done before each step.

    Tensor i is written by step i; what is read must be done before. An operation in place reads element by element.
    """
    count = draw(st.integers(2, 14))
    streams = [draw(st.integers(0, 2)) for _ in range(count)]
    reads = [sorted(draw(st.sets(st.integers(max(0, step - 5), step - 1), max_size=2))) if step else [] for step in range(count)]
    before = []
    for step in range(count):
        direct = {i for i in range(step) if streams[i] == streams[step]} | set(reads[step])
        before.append(direct.union(*(before[i] for i in direct)))
    in_place = [[tensor for tensor in reads[step] if draw(st.booleans())] for step in range(count)]
    sizes = [draw(st.sampled_from([100, 300, 1000])) for _ in range(count)]
    return reads, before, in_place, sizes


@given(programs(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_every_legal_order_reads_what_was_written(program, generator):
    """Runs the program byte range by byte range: a tensor that somebody overwrote too early is seen."""
    reads, before, in_place, sizes = program
    users = [[step for step in range(len(reads)) if tensor == step or tensor in reads[step]] for tensor in range(len(reads))]
    buffers = [Buffer(size, min(steps), max(steps), tuple(steps)) for size, steps in zip(sizes, users, strict=True)]
    handovers = [Handover(source, step, (step,)) for step, sources in enumerate(in_place) for source in sources]
    placement = plan_memory(buffers, lambda i, j: i in before[j], handovers)
    assert placement.arena_bytes <= plan_memory(buffers, lambda i, j: i in before[j]).arena_bytes
    assert placement.tensor_bytes == sum(map(rounded, sizes))
    places = [range(at, at + size) for at, size in zip(placement.offsets, sizes, strict=True)]
    assert all(place.stop <= placement.arena_bytes for place in places)
    holds = [None] * placement.arena_bytes
    done = set()
    while len(done) < len(reads):
        step = generator.choice([s for s in range(len(reads)) if s not in done and before[s] <= done])
        for tensor in reads[step]:
            assert all(holds[byte] == tensor for byte in places[tensor]), (step, tensor)
        shared = [tensor for tensor in reads[step] if set(places[tensor]) & set(places[step])]
        assert all(tensor in in_place[step] and places[tensor] == places[step] for tensor in shared)
        for byte in places[step]:
            holds[byte] = step
        done.add(step)


def test_a_chain_in_place_is_one_buffer():
    buffers = [Buffer(1000, step, step + 1) for step in range(6)]
    handovers = [Handover(step, step + 1, (step + 1,)) for step in range(5)]
    placement = plan_memory(buffers, None, handovers)
    assert (placement.arena_bytes, placement.tensor_bytes, set(placement.offsets)) == (1024, 6 * 1024, {0})


@pytest.mark.parametrize(("size", "later", "order"), [(999, 1, None), (1000, 3, None), (1000, 1, lambda i, j: (i, j) != (0, 2))])
def test_not_in_place(size, later, order):
    """Of another size; read again later; read by a step that is not done before."""
    read = Buffer(1000, 0, later, (0, 1) if later == 1 else (0, 1, 3))
    written = Buffer(size, 1, 2, (1, 2))
    assert plan_memory([read, written], order, [Handover(0, 1, (1,))]).arena_bytes == 2048


@given(st.lists(SIZES, min_size=1, max_size=40))
@settings(deadline=None, max_examples=150)
def test_chains_meet_the_lower_bound(sizes):
    """Each step reads what the one before wrote."""
    buffers = [Buffer(size, step, step + 1) for step, size in enumerate(sizes)]
    expected = max([rounded(a) + rounded(b) for a, b in itertools.pairwise(sizes)] + [rounded(size) for size in sizes])
    assert plan_memory(buffers).arena_bytes == lower_bound(buffers) == expected


@given(one_stream())
@settings(deadline=None, max_examples=100)
def test_one_stream_as_a_predicate_is_the_same(buffers):
    assert plan_memory(buffers, lambda i, j: i < j) == plan_memory(buffers)


def test_streams_without_waits_share_nothing():
    buffers = [Buffer(1000, 0, 1, (0, 1)), Buffer(1000, 2, 3, (2, 3))]
    assert plan_memory(buffers).arena_bytes == 1024
    assert plan_memory(buffers, lambda i, j: (i < 2) == (j < 2)).arena_bytes == 2048


def test_one_step_unordered_is_enough_to_keep_apart():
    buffers = [Buffer(1000, 0, 2, (0, 1, 2)), Buffer(1000, 3, 4, (3, 4))]
    assert find_conflicts(buffers, lambda i, j: True) == [[], []]
    assert find_conflicts(buffers, lambda i, j: (i, j) != (1, 3)) == [[1], [0]]


def test_empty():
    assert plan_memory([]).arena_bytes == 0
    assert plan_memory([Buffer(0, 0, 9), Buffer(0, 0, 9)]).arena_bytes == 0
    assert plan_memory([Buffer(1, 0, 9), Buffer(0, 0, 9)]).arena_bytes == 256


@pytest.mark.parametrize("buffer", [(-1, 0, 1), (1, 2, 1), (1, 0, 3, (0, 1)), (1, 1, 3, (0, 3))])
def test_malformed_buffers(buffer):
    with pytest.raises(ValueError, match="not a buffer"):
        Buffer(*buffer)


def residual_network(blocks):
    """Bottleneck blocks: three convolutions and a skip connection; sizes of ResNet's stages."""
    found, step = [], 0
    for block in range(blocks):
        wide = 256 * 56 * 56 * 2 >> block * 4 // blocks
        found += [Buffer(wide // 4, step, step + 1), Buffer(wide // 4, step + 1, step + 2)]
        found.append(Buffer(wide, step + 2, step + 5, (step + 2, step + 3, step + 5)))
        step += 3
    return found


def test_residual_network_meets_the_lower_bound():
    buffers = residual_network(16)
    assert plan_memory(buffers).arena_bytes == lower_bound(buffers)


def test_large_graphs_are_quick():
    buffers = residual_network(500)
    started = time.perf_counter()
    placement = plan_memory(buffers, lambda i, j: True)
    assert time.perf_counter() - started < 20
    assert placement.arena_bytes <= lower_bound(buffers) * 1.2
