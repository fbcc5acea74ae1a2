"""``torchkiln compile``: the file it writes is the engine torchkiln.compile makes; what it prints is its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchkiln
from torchkiln.capture.sources import load_model

from .conftest import invoke, invoke_json


def test_the_engine_is_the_models(model_file: Path, engine_file: Path) -> None:
    model = load_model(f"{model_file}:make", seed=3).model
    engine = torchkiln.load(engine_file)
    for batch in (1, 2, 5):
        ids, scale = torch.randint(0, 11, (batch, 3)), torch.randn(batch, 3, 6)
        with torch.inference_mode():
            expected = model(ids, scale)  # type: ignore[operator]
        outputs = engine(ids, scale)
        assert torch.allclose(outputs["hidden"], expected["hidden"], atol=1e-5)
        assert torch.equal(outputs["best"], expected["best"])
    assert engine.report().model == f"{model_file}:make"


def test_json_holds_the_report(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.kiln"
    told = invoke_json(
        "compile", f"{model_file}:image", "-o", path, "--shape", "1x3x9x14", "--backend", "openvino", "--tolerance", "0.003", "--threads", "1"
    )
    assert told["engine"] == str(path)
    assert told["size_bytes"] == path.stat().st_size
    assert told["reports"][0]["settings"]["num_threads"] == 1
    assert told["reports"][0]["parity"]["tolerance"] == 0.003
    assert told["reports"][0]["parity"]["relative_error"] <= 0.003
    assert {s["backend"] for s in told["reports"][0]["segments"]} == {"openvino"}


def test_the_report_is_printed(model_file: Path, tmp_path: Path) -> None:
    result = invoke("compile", f"{model_file}:make", "-o", tmp_path / "m.kiln", "--backend", "torch", "--no-verify")
    assert result.exit_code == 0, result.output
    assert "net_of_the_tests.py:make" in result.stdout
    assert "wrote" in result.stdout


def test_a_dry_run_writes_nothing(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--shape", "1x3x9x14", "--backend", "openvino", "--torch-executed-ops", "aten.sigmoid"]
    told = invoke_json("compile", f"{model_file}:image", "--dryrun", *options)
    assert "engine" not in told
    assert any("sigmoid" in r["subject"] for r in told["reports"][0]["rejects"])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_writes_nothing_and_exits_with_1(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.kiln"
    result = invoke("compile", f"{model_file}:image", "-o", path, "--shape", "1x3x9x14", "--backend", "openvino", "--tolerance", "1e-30")
    assert result.exit_code == 1
    assert "ParityFailed" in result.stderr
    assert not path.exists()


def test_a_model_without_shapes_says_so(model_file: Path, tmp_path: Path) -> None:
    result = invoke("compile", f"{model_file}:image", "-o", tmp_path / "m.kiln")
    assert result.exit_code == 1
    assert "give --shape" in result.stderr


def test_an_exported_program_needs_no_shapes(tmp_path: Path) -> None:
    x = torch.randn(3, 7)
    model = torch.nn.Sequential(torch.nn.Linear(7, 4), torch.nn.Tanh()).eval()
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    invoke_json("compile", tmp_path / "m.pt2", "-o", tmp_path / "m.kiln", "--backend", "torch")
    with torch.inference_mode():
        assert torch.allclose(torchkiln.load(tmp_path / "m.kiln")(x), model(x), atol=1e-6)


def test_the_whole_way_in_processes_of_their_own(model_file: Path, tmp_path: Path) -> None:
    """compile, then run without the model's source code."""
    path = tmp_path / "m.kiln"
    program = [sys.executable, "-m", "torchkiln"]
    compiling = [*program, "compile", f"{model_file}:make", "-o", str(path), "--backend", "openvino", "--json"]
    told = json.loads(subprocess.run(compiling, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert told["reports"][0]["parity"]["verified"]
    running = [*program, "run", str(path), "--json", "-n", "2"]
    told = json.loads(subprocess.run(running, capture_output=True, text=True, check=True, timeout=300, cwd=tmp_path).stdout)
    assert [o["shape"] for o in told["outputs"]] == [[1, 3, 6], [1, 3]]
