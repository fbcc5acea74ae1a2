"""Calibration data from the files of a folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchkiln.errors import UserError
from torchkiln.inputs import Input
from torchkiln.quantize.folder_data import FolderData

SPEC = Input((1, 1, 4, 5))


def read(folder, **options) -> list[torch.Tensor]:
    return list(FolderData(folder, SPEC, batch_size=4, **options))


def test_a_limit_is_spread_over_the_names(tmp_path):
    for number in range(10):
        np.save(tmp_path / f"{number}.npy", np.full((1, 4, 5), number, dtype=np.float32))
    assert [batch[:, 0, 0, 0].tolist() for batch in read(tmp_path, limit=5)] == [[0, 2, 4, 6], [8]]
    assert [len(batch) for batch in read(tmp_path, limit=20)] == [4, 4, 2]
    assert [len(batch) for batch in read(tmp_path)] == [4, 4, 2]


@pytest.mark.parametrize("name", ["empty.npy", "empty.png", "damaged.png"])
def test_files_that_cannot_be_read(tmp_path, name):
    pytest.importorskip("PIL")
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\nbroken chunks" if "damaged" in name else b"")
    with pytest.raises(UserError, match=name):
        read(tmp_path)


def test_images_too_large_for_pillow(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (50, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"large\.png"):
        read(tmp_path)


@pytest.mark.parametrize(("mode", "name"), [("I;16", "deep.png"), ("I", "deep.tif"), ("F", "deep.tif")])
def test_images_of_more_than_8_bits(tmp_path, mode, name):
    image = pytest.importorskip("PIL.Image")
    image.new(mode, (5, 4)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"more than 8 bits"):
        read(tmp_path)
    (tmp_path / name).unlink()
    image.new("L", (10, 8), 255).save(tmp_path / "plain.png")
    assert read(tmp_path)[0].unique().tolist() == [1.0]
