from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ..one_node import Array, check, int64, integers, normal

BIG = 2**63 - 1


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((1,), (4,), (1,), None),
        ((0, 1), (BIG, -1), (0, 2), None),
        ((-3,), (BIG,), (-1,), (2,)),
        ((-1,), (-BIG,), (1,), (-1,)),
        ((4,), (0,), (1,), (-2,)),
        ((100,), (-100,), (2,), (-3,)),
    ],
)
def test_slice(starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...] | None, tmp_path: Path) -> None:
    constants = {1: int64(*starts), 2: int64(*ends), 3: int64(*axes), **({4: int64(*steps)} if steps else {})}
    check("Slice", [normal(3, 5, 7), *constants.values()], tmp_path, constants)


def test_slice_by_attributes(tmp_path: Path) -> None:
    check("Slice", [normal(3, 5)], tmp_path, opset=9, starts=[1, -4], ends=[3, -1], axes=[0, 1])


@pytest.mark.parametrize("indices", [integers(-5, 5, 4), integers(-5, 5, 2, 3), np.array(-2)])
@pytest.mark.parametrize("constant", [True, False])
def test_gather(indices: Array, constant: bool, tmp_path: Path) -> None:
    check("Gather", [normal(3, 5, 7), indices], tmp_path, {1: indices} if constant else {}, axis=1)


def test_gather_from_a_table_of_weights(tmp_path: Path) -> None:
    table = normal(11, 6)
    check("Gather", [table, integers(0, 11, 3, 5)], tmp_path, {0: table})


def test_gather_elements(tmp_path: Path) -> None:
    check("GatherElements", [normal(3, 5), integers(-3, 3, 2, 5)], tmp_path, axis=0)


@pytest.mark.parametrize("batch", [0, 1])
def test_gather_nd(batch: int, tmp_path: Path) -> None:
    check("GatherND", [normal(3, 3, 4), integers(0, 3, 3, 2, 2)], tmp_path, batch_dims=batch)


def unique_rows(rows: int, columns: int) -> Array:
    return np.stack([np.random.default_rng(i).permutation(columns)[: rows + 1] for i in range(3)]).astype(np.int64)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_elements(reduction: str, tmp_path: Path) -> None:
    indices = unique_rows(2, 5)
    check("ScatterElements", [normal(3, 5), indices - 5, normal(3, 3, seed=1)], tmp_path, opset=18, axis=1, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_nd(reduction: str, tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 0], [1, -1]]) if reduction == "none" else np.array([[0, 1], [2, 0], [0, 1]])
    check("ScatterND", [normal(3, 4, 5), indices, normal(3, 5, seed=1)], tmp_path, opset=18, reduction=reduction)


def test_reverse_sequence(tmp_path: Path) -> None:
    check("ReverseSequence", [normal(5, 3, 2), int64(2, 5, 1)], tmp_path, time_axis=0, batch_axis=1)
