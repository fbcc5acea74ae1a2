"""Reading windows, adding them up, dividing by the counts, and what is remembered of it."""

from __future__ import annotations

import itertools

import pytest
import torch

from torchkiln.sliding_window.accumulate import Accumulator
from torchkiln.sliding_window.gather import Gather
from torchkiln.sliding_window.grid import Box, make_grid, whole
from torchkiln.sliding_window.runs import find_runs, strided
from torchkiln.sliding_window.tensor_cache import TensorCache
from torchkiln.sliding_window.weights import importance_map, reciprocal_counts

CPU = torch.device("cpu")
GRIDS = [make_grid(*arguments) for arguments in (((11, 13), (4, 6), (0.5, 0.3)), ((9, 7, 10), (4, 7, 3), (0.8, 0.1, 0.0)), ((20,), (4,), (0.7,)))]


def at(place, roi):
    return (place[0], slice(None), *(slice(start, start + size) for start, size in zip(place[1:], roi, strict=True)))


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{len(grid.roi_size)}d")
@pytest.mark.parametrize("outer", [None, -1])
def test_windows_are_read_in_any_batch(grid, by_index, outer):
    rank = len(grid.roi_size)
    box = whole(grid, 2)
    box = Box(box.images, box.layers, outer and rank - 1)
    places = box.places(grid)
    # A part of a larger tensor, as a box is.
    source = torch.randn(3, 4, *(size + 2 for size in grid.image_size))[1:, 1:3][(..., *[slice(1, -1)] * rank)]
    gather = Gather(source, places, grid.roi_size, by_index=by_index)
    for batch in (1, 3, 7):
        for low in range(0, len(places), batch):
            high = min(low + batch, len(places))
            out = torch.full((batch, 2, *grid.roi_size), torch.nan)
            gather.read(low, high, out)
            wanted = [source[at(place, grid.roi_size)] for place in places[low:high]]
            wanted += wanted[-1:] * (batch - len(wanted))
            assert out.equal(torch.stack(wanted))


def test_windows_are_read_into_another_dtype():
    source = torch.arange(10.0).view(1, 1, 10)
    for by_index in (False, True):
        out = torch.empty(2, 1, 4, dtype=torch.float16)
        Gather(source, [(0, 0), (0, 5)], (4,), by_index=by_index).read(0, 2, out)
        assert out.flatten().tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{len(grid.roi_size)}d")
def test_windows_add_up_as_one_by_one(grid, dtype):
    places = whole(grid, 2).places(grid)
    windows = torch.randn(len(places), 3, *grid.roi_size).to(dtype)
    for weight in (None, torch.rand(1, 1, *grid.roi_size)):
        expected = torch.zeros(2, 3, *grid.image_size)
        for place, window in zip(places, windows, strict=True):
            expected[at(place, grid.roi_size)] += window * (1 if weight is None else weight[0])
        for batch in (1, 4, len(places)):
            sums = Accumulator(expected.shape, torch.float32, CPU)
            for low in range(0, len(places), batch):
                sums.add(places[low : low + batch], windows[low : low + batch], weight)
            torch.testing.assert_close(sums.total, expected, rtol=1e-5, atol=1e-5 if dtype is torch.float32 else 1e-3)


def test_runs_are_as_long_as_can_be():
    places = [(0, 0, 0), (0, 0, 3), (0, 0, 6), (0, 0, 7), (0, 2, 0), (0, 4, 0), (1, 4, 0), (1, 4, 0)]
    assert [(run.first, run.count, run.axis, run.step) for run in find_runs(places)] == [
        (0, 3, 2, 3),
        (3, 1, 0, 0),
        (4, 2, 1, 2),
        (6, 1, 0, 0),
        (7, 1, 0, 0),
    ]
    tensor = torch.randn(2, 3, 9, 10)
    run = find_runs(places)[0]
    assert strided(tensor, run, (2, 3), every=2, skip=0).equal(torch.stack([tensor[0, :, :2, :3], tensor[0, :, :2, 6:9]]))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{len(grid.roi_size)}d")
def test_reciprocal_counts_of_any_region(grid):
    weight = torch.rand(1, 1, *grid.roi_size) + 0.1
    counts = torch.zeros(1, 1, *grid.image_size)
    for place in itertools.product(*grid.starts):
        counts[at((0, *place), grid.roi_size)] += weight[0]
    for region in ([(0, size) for size in grid.image_size], [(1, size - 2) for size in grid.image_size]):
        expected = 1 / counts[(..., *(slice(low, high) for low, high in region))]
        torch.testing.assert_close(reciprocal_counts(weight, grid.starts, region), expected)


def test_gaussian_weights():
    weight = importance_map((5, 8), "gaussian", (0.125, 0.3), CPU, torch.float64)
    assert weight.max() == weight[2, 3] == weight[2, 4]
    assert weight.min() >= 1e-3 * (1 - 1e-6)  # 1e-3 in float32
    assert weight.flip(0, 1).equal(weight)
    assert importance_map((5, 8), "gaussian", (0.125, 0.3), CPU, torch.float64) is weight
    assert importance_map((2, 2), "constant", (1.0, 1.0), CPU, torch.float32).eq(1).all()


def test_the_cache_is_bounded():
    cache = TensorCache(max_count=2, max_bytes=100)
    made = []

    def make(size):
        made.append(size)
        return torch.zeros(size, dtype=torch.uint8)

    for key, size in [("a", 40), ("b", 40), ("a", 40), ("c", 40), ("a", 40)]:
        assert cache.get(key, lambda size=size: make(size)).numel() == size
    assert made == [40, 40, 40]  # b went
    assert (len(cache), cache.size_bytes) == (2, 80)
    cache.get("d", lambda: make(90))
    assert (len(cache), cache.size_bytes) == (1, 90)
    cache.get("e", lambda: make(101))
    assert (len(cache), cache.size_bytes) == (1, 90)
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)
