"""An engine with native code: refused without --trusted, inspected without running, exported for C++."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torchkiln

from .conftest import invoke, invoke_json


@pytest.fixture(scope="module")
def native_engine_file(model_file: Path) -> Path:
    path = model_file.parent / "native.kiln"
    options = ("--shape", "2x3x9x14", "--backend", "inductor", "--min-block-size", "1", "--require-full-compilation")
    result = invoke("compile", f"{model_file}:image", "-o", path, *options)
    assert result.exit_code == 0, result.output
    return path


def test_native_code_needs_trust(native_engine_file: Path) -> None:
    refused = invoke("run", native_engine_file)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("UntrustedCode")
    assert "--trusted" in refused.stderr
    told = invoke_json("run", native_engine_file, "--trusted", "-n", "1")
    assert told["outputs"][0]["shape"] == [2, 2, 5, 10]


def test_inspect_says_that_there_is_native_code(native_engine_file: Path) -> None:
    facts = invoke_json("inspect", native_engine_file)
    assert facts["native_code"] is True
    assert [(s["backend"], s["native_code"]) for s in facts["segments"]] == [("inductor", True)]
    assert "native code: yes" in invoke("inspect", native_engine_file).stdout


def test_the_package_computes_the_same(native_engine_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    result = invoke("export", native_engine_file, "--format", "pt2", "-o", path)
    assert result.exit_code == 0, result.output
    assert f"wrote {path}" in result.stdout
    x = torch.randn(2, 3, 9, 14)
    package = torch._inductor.aoti_load_package(str(path))
    with torch.inference_mode():
        outputs = package(x)
    outputs = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    assert torch.equal(outputs, torchkiln.load(native_engine_file, trusted=True)(x))


def test_other_engines_say_how_to_make_one(image_engine_file: Path, tmp_path: Path) -> None:
    result = invoke("export", image_engine_file, "-o", tmp_path / "m.pt2")
    assert result.exit_code == 1
    assert "inductor" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format(image_engine_file: Path, tmp_path: Path) -> None:
    assert invoke("export", image_engine_file, "--format", "onnx", "-o", tmp_path / "m").exit_code == 2
