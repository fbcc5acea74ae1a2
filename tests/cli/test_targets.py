"""Targets on the command line: build for GPUs that are not here, look at the layers, put files together, and what is said when nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchkiln.cli.shapes import parse_profile
from torchkiln.engine.file import read_engine_file, write_engine_file
from torchkiln.errors import UserError

from .conftest import invoke, invoke_json

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def gpu_file(model_file: Path) -> Path:
    """For two GPUs, with two profiles."""
    path = model_file.parent / "gpu.kiln"
    shapes = ["--min-shape", "input:1x3x17x23", "--opt-shape", "input:2x3x17x23", "--max-shape", "input:8x3x17x23"]
    profiles = ["--profile", "input=1x3x17x23:1x3x17x23:1x3x17x23", "--profile", "input=2x3x17x23:4x3x17x23:8x3x17x23"]
    options = ["--backend", "tensorrt", "--target", "sm_86,sm_89", "--precision", "fp16", "--workspace", "64", "--min-block-size", "1"]
    result = invoke("compile", f"{model_file}:image", "-o", path, *shapes, *profiles, *options)
    assert result.exit_code == 0, result.output
    assert "for sm_86, sm_89" in result.stdout
    return path


def test_what_was_asked_for_is_in_the_file(gpu_file: Path) -> None:
    (contents,) = read_engine_file(gpu_file, trusted=True)
    metadata = contents.segments[0].artifact.metadata
    assert contents.targets == ("sm_86", "sm_89")
    assert metadata["workspace_size"] == 64 * 2**20
    assert [[p["opt"][0] for p in port["profiles"]] for port in metadata["inputs"]] == [[1, 4]]
    assert contents.report.settings["profiles"][1] == {"input": [[2, 3, 17, 23], [4, 3, 17, 23], [8, 3, 17, 23]]}


def test_inspect_lists_layers(gpu_file: Path) -> None:
    (target,) = invoke_json("inspect", gpu_file)["targets"]
    layers = target["segments"][0]["layers"]
    assert {"name", "type", "dtype", "shape"} <= layers[0].keys()
    assert 0 < target["segments"][0]["onnx_error"] < 1e-2
    assert any(layer["type"] == "convolution" and layer["dtype"] == "fp16" for layer in layers)
    short, full = invoke("inspect", gpu_file).stdout, invoke("inspect", gpu_file, "--layers").stdout
    assert "fp16" in short
    assert "layers of segment_0" not in short
    assert "layers of segment_0" in full
    assert "convolution" in full


@pytest.mark.parametrize("layers", ["x", [1], [{}], 5, [{"name": "a", "type": "b", "dtype": "c", "shape": ["d"]}]])
def test_a_forged_layer_table_is_one_message(gpu_file: Path, tmp_path: Path, layers: object) -> None:
    (contents,) = read_engine_file(gpu_file, trusted=True)
    contents.segments[0].artifact.metadata["layers"] = layers
    write_engine_file([contents], tmp_path / "m.kiln")
    result = invoke("inspect", tmp_path / "m.kiln")
    assert result.exit_code == 1
    assert result.stderr.startswith("CorruptEngineFile: segment segment_0: layers: expected objects")


def test_merged_with_a_cpu_engine(model_file: Path, gpu_file: Path, tmp_path: Path) -> None:
    cpu, both = tmp_path / "cpu.kiln", tmp_path / "both.kiln"
    shapes = [part for bound, batch in (("min", 1), ("opt", 2), ("max", 8)) for part in (f"--{bound}-shape", f"input:{batch}x3x17x23")]
    assert invoke("compile", f"{model_file}:image", "-o", cpu, *shapes, "--backend", "torch").exit_code == 0
    told = invoke_json("merge", cpu, gpu_file, "-o", both)
    assert told["targets"] == ["cpu", "sm_86", "sm_89"]
    assert [t["names"] for t in invoke_json("inspect", both)["targets"]] == [["cpu"], ["sm_86", "sm_89"]]
    ran = invoke_json("run", both, "--random")
    assert ran["device"] == "cpu" or torch.cuda.is_available()
    assert ran["target_note"]
    refused = invoke("merge", cpu, cpu, "-o", tmp_path / "twice.kiln")
    assert refused.exit_code == 1
    assert "cpu is there twice" in refused.stderr
    assert not (tmp_path / "twice.kiln").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_nothing_fits(gpu_file: Path, model_file: Path) -> None:
    result = invoke("run", gpu_file, "--random", "--trusted")
    assert result.exit_code == 1
    assert "this machine has no usable GPU; the engine holds sm_86, sm_89 (tensorrt fp16)" in result.stderr
    assert f"torchkiln compile {model_file}:image --target cpu" in result.stderr


def test_cpu_and_gpu_at_once(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.kiln"
    told = invoke_json("compile", f"{model_file}:make", "-o", path, "--target", "cpu", "--target", "sm_120", "--torch-executed-ops", "aten.gelu")
    assert [report["device"] for report in told["reports"]] == ["cpu", "sm_120"]
    assert [c.targets for c in read_engine_file(path, trusted=True)] == [("cpu",), ("sm_120",)]


def test_doctor_says_which_gpus_can_be_built_for() -> None:
    rows = {row["target"]: row for row in invoke_json("doctor")["absent_targets"]}
    assert rows["sm_89"]["backends"] == ["tensorrt"]
    assert "sm_90" not in rows or (rows["sm_90"]["backends"] == [] and "no kernels for sm_90" in rows["sm_90"]["reason"])
    assert "sm_89" in invoke("doctor").stdout


def test_a_target_that_is_none(model_file: Path, tmp_path: Path) -> None:
    result = invoke("compile", f"{model_file}:image", "-o", tmp_path / "m.kiln", "--shape", "1x3x9x9", "--target", "sm89x")
    assert result.exit_code == 2
    assert "expected 'cpu', 'current' or a compute capability" in result.stderr.replace("\n", " ").replace("│ ", "").replace("  ", " ")


def test_refit_says_what_it_needs(gpu_file: Path, model_file: Path, tmp_path: Path) -> None:
    result = invoke("refit", gpu_file, f"{model_file}:image", "-o", tmp_path / "new.kiln", "--trusted")
    assert result.exit_code == 1
    assert "segment_0 (tensorrt) cannot take new weights" in result.stderr
    assert "UntrustedCode" in invoke("refit", gpu_file, f"{model_file}:image", "-o", tmp_path / "new.kiln").stderr


def test_profiles_as_text() -> None:
    assert parse_profile("x=1x3:4x3:8x3, y=2:2:2") == {"x": ((1, 3), (4, 3), (8, 3)), "y": ((2,), (2,), (2,))}
    for text in ("x=1x3:4x3", "1x3:4x3:8x3", "x=ax3:4x3:8x3", ""):
        with pytest.raises(UserError, match="expected NAME=MIN:OPT:MAX"):
            parse_profile(text)
    with pytest.raises(UserError, match="input 'x' is given twice"):
        parse_profile("x=1:1:1,x=2:2:2")
