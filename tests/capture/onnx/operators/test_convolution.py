from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from torchkiln.errors import ModelSourceError

from ..one_node import check, int64, normal


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3]},
        {"pads": [1, 2, 1, 2]},
        {"pads": [0, 1, 2, 3]},
        {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
    ],
)
def test_conv(attributes: dict[str, Any], tmp_path: Path) -> None:
    check("Conv", [normal(2, 4, 11, 14), normal(6, 4, 3, 2, seed=1), normal(6, seed=2)], tmp_path, tolerance=1e-4, **attributes)


def test_conv_of_groups_and_other_ranks(tmp_path: Path) -> None:
    check("Conv", [normal(2, 6, 11, 9), normal(9, 2, 3, 3, seed=1)], tmp_path, group=3, pads=[1, 1, 1, 1])
    check("Conv", [normal(2, 4, 11), normal(6, 4, 3, seed=1)], tmp_path, strides=[2])
    check("Conv", [normal(1, 2, 5, 6, 7), normal(3, 2, 2, 3, 3, seed=1)], tmp_path, pads=[0, 1, 1, 1, 0, 0])


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3], "output_padding": [1, 2]},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"pads": [0, 1, 1, 0], "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"output_shape": [11, 13], "strides": [2, 2]},
        {"dilations": [2, 2], "pads": [1, 2, 1, 2]},
    ],
)
@pytest.mark.parametrize("biased", [True, False])
def test_conv_transpose(attributes: dict[str, Any], biased: bool, tmp_path: Path) -> None:
    inputs = [normal(2, 4, 5, 6), normal(4, 3, 3, 3, seed=1)] + ([normal(3, seed=2)] if biased else [])
    check("ConvTranspose", inputs, tmp_path, tolerance=1e-4, **attributes)


def test_conv_transpose_of_groups(tmp_path: Path) -> None:
    check("ConvTranspose", [normal(2, 4, 7), normal(4, 3, 3, seed=1)], tmp_path, group=2, strides=[2])


POOLS = [
    {},
    {"strides": [2, 3]},
    {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "pads": [0, 1, 1, 0]},
    {"strides": [2, 2], "ceil_mode": 1},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("attributes", POOLS)
def test_max_pool(attributes: dict[str, Any], tmp_path: Path) -> None:
    check("MaxPool", [normal(2, 3, 11, 14)], tmp_path, kernel_shape=[3, 2], **attributes)


def test_max_pool_of_other_kinds(tmp_path: Path) -> None:
    check("MaxPool", [normal(2, 3, 11, 14)], tmp_path, kernel_shape=[2, 2], dilations=[2, 3])
    check("MaxPool", [normal(2, 3, 11)], tmp_path, kernel_shape=[3], strides=[2])
    check("MaxPool", [normal(2, 3, 6, 5, 7)], tmp_path, kernel_shape=[2, 2, 2])
    check("MaxPool", [normal(2, 3, 11, 14)], tmp_path, outputs=2, kernel_shape=[2, 2], strides=[2, 2])


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("count_pads", [0, 1])
def test_average_pool(attributes: dict[str, Any], count_pads: int, tmp_path: Path) -> None:
    check("AveragePool", [normal(2, 3, 11, 14)], tmp_path, opset=19, kernel_shape=[3, 2], count_include_pad=count_pads, **attributes)


@pytest.mark.parametrize("count_pads", [0, 1])
def test_average_pool_with_dilations(count_pads: int, tmp_path: Path) -> None:
    attributes = {"kernel_shape": [2, 3], "dilations": [2, 1], "pads": [1, 1, 0, 1], "count_include_pad": count_pads}
    check("AveragePool", [normal(2, 3, 11, 14)], tmp_path, opset=19, **attributes)


def test_other_pools(tmp_path: Path) -> None:
    check("LpPool", [normal(2, 3, 11, 14)], tmp_path, kernel_shape=[2, 3], p=2)
    for name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        check(name, [normal(2, 3, 5, 7)], tmp_path)
        check(name, [normal(2, 3, 5)], tmp_path)


def test_col2im(tmp_path: Path) -> None:
    constants = {1: int64(5, 7), 2: int64(2, 3)}
    check("Col2Im", [normal(2, 18, 20), *constants.values()], tmp_path, constants)


def test_a_rank_that_torch_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="expected an input of 3 to 5 dimensions"):
        check("Conv", [normal(1, 1, 2, 2, 2, 2), normal(1, 1, 1, 1, 1, 1)], tmp_path)
