"""Dependencies of steps over memory, against the elements that they touch."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkiln.backends.cuda.dependencies import Access, dependencies, may_overlap
from torchkiln.backends.cuda.recipe import TensorSpec, channels_last_strides


def access(shape, strides, offset, writes=True):
    return Access("memory", writes, offset, TensorSpec(tuple(shape), tuple(strides), torch.float16))


def elements(one):
    places = [range(0, size * stride, stride) if stride else [0] for size, stride in zip(one.spec.shape, one.spec.strides, strict=True)]
    return {one.offset + sum(at) for at in itertools.product(*places)} if one.spec.numel else set()


@st.composite
def accesses(draw):
    rank = draw(st.integers(1, 3))
    return access(
        [draw(st.integers(0, 4)) for _ in range(rank)], [draw(st.sampled_from([0, 1, 2, 3, 4, 8, 12])) for _ in range(rank)], draw(st.integers(0, 20))
    )


@given(accesses(), accesses())
@settings(deadline=None, max_examples=200)
def test_what_shares_an_element_may_overlap(a, b):
    if elements(a) & elements(b):
        assert may_overlap(a, b)
    assert may_overlap(a, b) == may_overlap(b, a)


def test_parts_of_a_concatenation_are_apart():
    strides = channels_last_strides((2, 24, 5, 7))
    a, b, whole = access((2, 8, 5, 7), strides, 0), access((2, 16, 5, 7), strides, 8), access((2, 24, 5, 7), strides, 0)
    rows, batch = access((70, 8), (24, 1), 0), access((1, 24, 5, 7), strides, 24 * 35)
    assert not may_overlap(a, b)
    assert not may_overlap(b, rows)
    assert not may_overlap(access((1, 24, 5, 7), strides, 0), batch)
    assert may_overlap(a, whole)
    assert may_overlap(a, rows)
    assert may_overlap(b, batch)
    assert may_overlap(a, Access("memory", True))


def test_reads_writes_and_memories():
    read, write = access((4,), (1,), 0, False), access((4,), (1,), 0)
    other, elsewhere = Access("other", True), access((4,), (1,), 4)
    #          writes    reads   reads   another   elsewhere   writes
    steps = [[write], [read], [read], [other], [elsewhere], [write], [read, other]]
    assert dependencies(steps) == [(), (0,), (0,), (), (), (0, 1, 2), (0, 3, 5)]
