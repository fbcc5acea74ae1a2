from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchkiln.errors import ModelSourceError

from ..one_node import Array, check, float32, int64, normal

COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]


def resize(value: Array, folder: Path, scales: Array | None = None, sizes: Array | None = None, opset: int = 19, **attributes: object) -> None:
    constants = {i: v for i, v in ((2, scales), (3, sizes)) if v is not None}
    inputs = [value, None, scales] + ([sizes] if sizes is not None else [])
    check("Resize", inputs, folder, constants, opset=opset, tolerance=2e-5, **attributes)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_coordinates(coordinates: str, mode: str, by: str, tmp_path: Path) -> None:
    value = normal(1, 2, 5, 7)
    for factors, shape in (((1, 1, 2.0, 3.0), (1, 2, 10, 21)), ((1, 1, 0.6, 0.7), (1, 2, 3, 4))):
        target = {"scales": float32(*factors)} if by == "scales" else {"sizes": int64(*shape)}
        resize(value, tmp_path, mode=mode, coordinate_transformation_mode=coordinates, **target)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
def test_nearest(rounding: str, coordinates: str, tmp_path: Path) -> None:
    resize(normal(1, 2, 5, 7), tmp_path, sizes=int64(1, 2, 8, 11), mode="nearest", nearest_mode=rounding, coordinate_transformation_mode=coordinates)


def test_cubic_with_its_own_coefficient_and_edges(tmp_path: Path) -> None:
    resize(normal(1, 2, 5, 7), tmp_path, scales=float32(1, 1, 2, 2), mode="cubic", cubic_coeff_a=-0.5)
    resize(normal(1, 2, 5, 7), tmp_path, scales=float32(1, 1, 2, 2), mode="cubic", exclude_outside=1)


def test_to_a_size_of_one(tmp_path: Path) -> None:
    for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        resize(normal(1, 2, 5, 7), tmp_path, sizes=int64(1, 2, 1, 4), mode="linear", coordinate_transformation_mode=coordinates)


def test_other_ranks(tmp_path: Path) -> None:
    resize(normal(1, 2, 5), tmp_path, sizes=int64(1, 2, 9), mode="linear")
    resize(normal(1, 2, 3, 4, 5), tmp_path, sizes=int64(1, 2, 6, 7, 8), mode="linear")
    resize(normal(4, 6), tmp_path, sizes=int64(5, 9), mode="linear")


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_some_axes_and_the_ratio_of_sizes(policy: str, tmp_path: Path) -> None:
    resize(normal(1, 2, 5, 7), tmp_path, sizes=int64(10, 11), mode="nearest", axes=[2, 3], keep_aspect_ratio_policy=policy)


def test_antialias(tmp_path: Path) -> None:
    resize(normal(1, 2, 12, 15), tmp_path, sizes=int64(1, 2, 5, 7), mode="linear", antialias=1, exclude_outside=1)
    for mode in ("linear", "cubic"):
        with pytest.raises(ModelSourceError, match="antialias"):
            resize(normal(1, 2, 12, 15), tmp_path, sizes=int64(1, 2, 5, 7), mode=mode, antialias=1)


def test_old_versions(tmp_path: Path) -> None:
    scales = float32(1, 1, 2, 3)
    check("Resize", [normal(1, 2, 5, 7), scales], tmp_path, {1: scales}, opset=10, mode="nearest")
    check("Upsample", [normal(1, 2, 5, 7), scales], tmp_path, {1: scales}, opset=9, mode="linear")


def test_crop_and_resize_is_refused(tmp_path: Path) -> None:
    roi, sizes = float32(0, 0, 0, 0, 1, 1, 1, 1), int64(1, 2, 8, 8)
    constants = {1: roi, 3: sizes}
    with pytest.raises(ModelSourceError, match="tf_crop_and_resize"):
        check("Resize", [normal(1, 2, 5, 7), roi, None, sizes], tmp_path, constants, coordinate_transformation_mode="tf_crop_and_resize")


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample(mode: str, padding: str, tmp_path: Path) -> None:
    grid = np.random.default_rng(3).uniform(-1.2, 1.2, (2, 4, 3, 2)).astype(np.float32)
    check("GridSample", [normal(2, 3, 5, 7), grid], tmp_path, opset=20, tolerance=1e-4, mode=mode, padding_mode=padding, align_corners=1)


def test_affine_grid(tmp_path: Path) -> None:
    size = int64(2, 3, 4, 5)
    check("AffineGrid", [normal(2, 2, 3), size], tmp_path, {1: size}, opset=20)
