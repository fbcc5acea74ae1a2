"""torchkiln calibrate, and compile with what it wrote."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from .conftest import invoke, invoke_json

IMAGE = "3x3x8x9"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "int8_net.py"
    path.write_text(
        "from torch import nn\n"
        "def image():\n"
        "    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)]\n"
        "    return nn.Sequential(*layers)\n"
    )
    return f"{path}:image"


@pytest.fixture
def arrays(tmp_path):
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(4):
        np.save(folder / f"{number}.npy", random.normal(size=(3, 8, 9)))
    np.save(folder / "more" / "several.npy", random.normal(size=(3, 3, 8, 9)).astype(np.float32))
    return folder


def test_calibrate_then_compile(source, arrays, tmp_path):
    cache, engine = tmp_path / "calib.json", tmp_path / "m.kiln"
    result = invoke("calibrate", source, "--shape", IMAGE, "--data", arrays, "--algorithm", "mse", "--cache-file", cache, "--batch-size", "2")
    assert result.exit_code == 0, result.output
    assert "by mse over 7 samples in 4 batches" in result.output
    content = json.loads(cache.read_text())
    assert (content["samples"], content["algorithm"], next(iter(content["tensors"]))) == (7, "mse", "0.input")
    arguments = ("--shape", IMAGE, "--precision", "int8", "--calibration-cache", cache, "--backend", "openvino", "-o", engine)
    (report,) = invoke_json("compile", source, *arguments)["reports"]
    assert report["precision"] == "int8+fp32"
    assert "int8: 2 of 4 layers" in "".join(report["notes"])
    result = invoke("inspect", engine, "--layers")
    assert "int8+fp32" in result.output
    assert "2 int8" in result.output
    assert "Convolution" in result.output


def test_images_are_resized_and_normalised(source, tmp_path):
    folder, cache = tmp_path / "images", tmp_path / "calib.json"
    folder.mkdir()
    for number, suffix in enumerate(("png", "jpg", "bmp")):
        Image.new("RGB", (30, 20), (255, 0, 51)).save(
            folder / f"{number}.{suffix}", **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {})
        )
    given = ("--shape", IMAGE, "--data", folder, "--cache-file", cache, "--algorithm", "max", "--limit", "2")
    result = invoke("calibrate", source, *given, "--mean", "0.5,0,0.1", "--std", "0.5", "--stem", "--skip", "4*")
    assert result.exit_code == 0, result.output
    content = json.loads(cache.read_text())
    row = content["tensors"]["0.input"]
    assert row["max"] == pytest.approx(1.0, abs=0.02)
    assert row["min"] == pytest.approx(0.0, abs=0.02)
    assert content["samples"] == 2
    assert (content["options"]["stem"], content["options"]["skip"]) == (True, ["4*"])
    (report,) = invoke_json("compile", source, "--shape", IMAGE, "--precision", "int8", "--calibration-cache", cache, "--dryrun")["reports"]
    assert "int8: 2 of 4 layers" in "".join(report["notes"])


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({}, (), "has no files of the kinds"),
        ({"a.npy": np.zeros((3, 8, 8))}, (), "expected the shape 3x8x9 or Nx3x8x9, got 3x8x8"),
        ({"a.npy": np.array(["text"])}, (), "no array of numbers"),
        ({"a.png": b"no picture"}, (), "is no image"),
        ({"a.npy": np.zeros((3, 8, 9))}, ("--algorithm", "median"), "expected one of entropy, max"),
        ({"a.npy": np.zeros((3, 8, 9))}, ("--mean", "a,b"), "numbers joined by commas"),
        ({"a.npy": np.zeros((3, 8, 9))}, ("--std", "0"), "expected numbers above 0"),
    ],
)
def test_says_what_is_wrong(source, tmp_path, files, options, words):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            np.save(folder / name, content)
    result = invoke("calibrate", source, "--shape", IMAGE, "--data", folder, "--cache-file", tmp_path / "c.json", *options)
    assert result.exit_code != 0
    assert words in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "c.json").exists()


def test_int8_needs_a_cache(source, tmp_path):
    result = invoke("compile", source, "--shape", IMAGE, "--precision", "int8", "-o", tmp_path / "m.kiln")
    assert result.exit_code != 0
    assert "--calibration-cache" in result.output
    result = invoke(
        "compile", source, "--shape", IMAGE, "--precision", "int8", "--calibration-cache", tmp_path / "none.json", "-o", tmp_path / "m.kiln"
    )
    assert result.exit_code != 0
    assert "CalibrationCacheError" in result.output
