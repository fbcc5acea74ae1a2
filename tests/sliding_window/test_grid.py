"""Where windows are, and boxes of them."""

from __future__ import annotations

import itertools

import pytest

from torchkiln.errors import UserError
from torchkiln.sliding_window.grid import Box, buffered, make_grid, read_roi_size, whole


def windows(boxes, grid):
    return [place for box in boxes for place in box.places(grid)]


def test_windows_cover_the_image_and_the_last_ends_with_it():
    for size, roi, overlap in [(50, 16, 0.25), (17, 16, 0.99), (16, 16, 0.5), (33, 4, 0.0), (21, 5, 0.3)]:
        (starts,) = make_grid((size,), (roi,), (overlap,)).starts
        assert starts[0] == 0
        assert starts[-1] + roi == size
        assert all(0 < b - a <= max(int(roi * (1 - overlap)), 1) for a, b in itertools.pairwise(starts))


def test_order_is_image_by_image_with_the_last_dimension_fastest():
    grid = make_grid((6, 4), (4, 2), (0.5, 0.0))
    assert whole(grid, 2).places(grid) == [(i, a, b) for i in (0, 1) for a in (0, 2) for b in (0, 2)]
    assert Box((0, 1), ((0, 2), (0, 2)), outer=1).places(grid) == [(0, a, b) for b in (0, 2) for a in (0, 2)]


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_buffered_boxes_hold_every_window_once(dim):
    grid = make_grid((20, 9, 13), (4, 3, 6), (0.5, 0.0, 0.25))
    boxes = buffered(grid, 2, 2, dim)
    assert sorted(windows(boxes, grid)) == sorted(whole(grid, 2).places(grid))
    assert all(box.layers[dim][1] - box.layers[dim][0] <= 2 for box in boxes)


def test_halves_end_in_single_windows():
    grid = make_grid((20, 9), (4, 3), (0.5, 0.0))
    boxes = [whole(grid, 3)]
    while any(box.halves() for box in boxes):
        boxes = [half for box in boxes for half in (box.halves() or [box])]
    assert [box.window_count for box in boxes] == [1] * whole(grid, 3).window_count
    assert sorted(windows(boxes, grid)) == sorted(whole(grid, 3).places(grid))


@pytest.mark.parametrize(("images", "count", "largest"), [(1, 2, 12), (2, 2, 18), (3, 2, 30), (4, 4, 18), (1, 50, 2)])
def test_shares_are_even(images, count, largest):
    grid = make_grid((20, 4), (4, 2), (0.5, 0.0))  # nine by two windows
    shares = whole(grid, images).shares(count)
    assert len(shares) <= count
    assert sorted(windows(shares, grid)) == sorted(whole(grid, images).places(grid))
    assert max(share.window_count for share in shares) <= largest


def test_regions():
    grid = make_grid((20, 9), (4, 3), (0.5, 0.0))
    assert Box((0, 1), ((2, 4), (1, 2))).region(grid) == ((4, 10), (3, 6))


def test_roi_size_falls_back_to_the_image():
    assert read_roi_size((None, 0, -1, 5), (7, 8, 9, 10)) == (7, 8, 9, 5)
    assert read_roi_size(None, (7, 8)) == (7, 8)
    with pytest.raises(UserError, match="roi_size"):
        read_roi_size("large", (7, 8))
