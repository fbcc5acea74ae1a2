"""Engines with native code: refused without --trusted, exported for C++ and for TensorRT's tools. Models exported to ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

import torchkiln
from torchkiln.backends import onnx_file
from torchkiln.capture.sources import load_model
from torchkiln.engine.file import read_engine_file, write_engine_file

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
    assert [(s["backend"], s["native_code"]) for s in facts["targets"][0]["segments"]] == [("inductor", True)]
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
    refused = invoke("export", image_engine_file, "--format", "tflite", "-o", tmp_path / "m")
    assert refused.exit_code == 2
    assert "pt2, plan, onnx" in refused.stderr


@pytest.mark.parametrize(("to_format", "option"), [("pt2", "--opset"), ("plan", "--seed"), ("onnx", "--segment")])
def test_an_option_of_another_format(to_format: str, option: str, image_engine_file: Path, tmp_path: Path) -> None:
    refused = invoke("export", image_engine_file, "--format", to_format, "-o", tmp_path / "m.pt2", option, "1")
    assert refused.exit_code == 2
    assert f"{option} means nothing for --format {to_format}" in refused.stderr


def test_what_is_given_must_fit_the_format(image_engine_file: Path, model_file: Path, tmp_path: Path) -> None:
    for to_format in ("pt2", "plan"):
        refused = invoke("export", f"{model_file}:image", "--format", to_format, "-o", tmp_path / "m")
        assert refused.exit_code == 2
        assert "takes an engine file" in refused.stderr
    assert "no such file" in invoke("export", tmp_path / "none.kiln", "-o", tmp_path / "m.pt2").stderr
    refused = invoke("export", image_engine_file, "--format", "onnx", "-o", tmp_path / "m.onnx")
    assert refused.exit_code == 2
    assert "torchkiln export MODEL --format onnx" in refused.stderr


def test_a_model_as_an_onnx_file(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ranges = ["--min-shape", "input:1x3x9x14", "--opt-shape", "input:2x3x9x14", "--max-shape", "input:5x3x17x14", "--seed", "3"]
    told = invoke_json("export", f"{model_file}:image", "--format", "onnx", "-o", path, *ranges)
    assert told["files"] == [str(path)]
    assert told["relative_error"] <= 1e-5
    assert told["checked_at"] == ["opt", "min", "max"]
    assert told["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 3, "input_dim2", 14]}]
    assert list(tmp_path.iterdir()) == [path]
    x = torch.randn(4, 3, 11, 14)
    model = load_model(f"{model_file}:image", seed=3).model
    (given,) = onnxruntime.InferenceSession(path).run(None, {"input": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(given), model(x), rtol=1e-5, atol=1e-5)  # type: ignore[operator]
        torch.testing.assert_close(load_model(str(path)).model(x), model(x), rtol=1e-5, atol=1e-5)  # type: ignore[operator]


def test_an_onnx_file_is_a_model(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    written = invoke("export", f"{model_file}:make", "--format", "onnx", "-o", path, "--opset", "18", "--precision", "fp16")
    assert written.exit_code == 0, written.output
    assert "opset 18, fp16, relative error" in written.stdout
    told = invoke_json("compile", path, "-o", tmp_path / "m.kiln", "--backend", "openvino")
    (report,) = told["reports"]
    assert report["parity"]["relative_error"] <= 1e-5
    facts = invoke_json("run", tmp_path / "m.kiln", "-n", "1")
    assert sorted(o["name"] for o in facts["outputs"]) == ["['best']", "['hidden']"]


def test_sizes_that_vary_are_asked_for_by_name(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ranges = []
    for bound, batch in (("min", 1), ("opt", 2), ("max", 5)):
        ranges += [f"--{bound}-shape", f"ids:{batch}x3@int64", f"--{bound}-shape", f"scale:{batch}x3x6"]
    assert invoke("export", f"{model_file}:make", "--format", "onnx", "-o", path, *ranges).exit_code == 0
    refused = invoke("compile", path, "-o", tmp_path / "m.kiln")
    assert refused.exit_code == 1
    assert "--shape ids:batchx3 --shape scale:batchx3x6" in refused.stderr
    # The dtype of ids is in the file.
    shapes = ["--shape", "ids:2x3", "--shape", "scale:2x3x6"]
    assert invoke("compile", path, "-o", tmp_path / "m.kiln", "--backend", "openvino", *shapes).exit_code == 0


def test_errors_write_nothing(model_file: Path, tmp_path: Path) -> None:
    common = ("export", f"{model_file}:image", "--format", "onnx", "-o", tmp_path / "m.onnx")
    assert "--shape" in invoke(*common).stderr
    assert "unknown precision 'int8'" in invoke(*common, "--shape", "2x3x9x14", "--precision", "int8").stderr
    assert "opset" in invoke(*common, "--shape", "2x3x9x14", "--opset", "7").stderr
    assert list(tmp_path.iterdir()) == []


def test_a_result_too_far_from_the_model_is_not_written(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnx_file.TOLERANCES, torch.float16, 1e-9)
    options = ("--format", "onnx", "-o", tmp_path / "m.onnx", "--shape", "2x3x9x14", "--precision", "fp16")
    refused = invoke("export", f"{model_file}:image", *options)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("ParityFailed")
    assert list(tmp_path.iterdir()) == []


def test_many_weights_go_into_a_file_of_their_own(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST_INLINE", 100)
    path = tmp_path / "m.onnx"
    told = invoke_json("export", f"{model_file}:image", "--format", "onnx", "-o", path, "--shape", "2x3x9x14", "--seed", "3")
    assert told["files"] == [str(path), f"{path}.data"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    x = torch.randn(2, 3, 9, 14)
    with torch.no_grad():
        expected = load_model(f"{model_file}:image", seed=3).model(x)  # type: ignore[operator]
        torch.testing.assert_close(load_model(str(path)).model(x), expected, rtol=1e-5, atol=1e-5)  # type: ignore[operator]


@pytest.fixture(scope="module")
def plan_engine_file(model_file: Path) -> Path:
    """One TensorRT segment for two GPUs."""
    pytest.importorskip("tensorrt_rtx")
    path = model_file.parent / "plan.kiln"
    options = ("--backend", "tensorrt", "--target", "sm_86,sm_89", "--min-block-size", "1", "--shape", "2x3x9x14")
    result = invoke("compile", f"{model_file}:image", "-o", path, *options)
    assert result.exit_code == 0, result.output
    return path


def test_the_plan_alone(plan_engine_file: Path, tmp_path: Path) -> None:
    told = invoke_json("export", plan_engine_file, "--format", "plan", "-o", tmp_path / "m.plan")
    (contents,) = read_engine_file(plan_engine_file, trusted=True)
    assert (tmp_path / "m.plan").read_bytes() == contents.segments[0].artifact.payload
    assert told["targets"] == ["sm_86", "sm_89"]
    assert told["library"] == "tensorrt_rtx"
    assert [port["shape"] for port in told["inputs"]] == [[2, 3, 9, 14]]
    assert told["size_bytes"] == (tmp_path / "m.plan").stat().st_size
    assert told["notes"] == []
    shown = invoke("export", plan_engine_file, "--format", "plan", "-o", tmp_path / "m.plan", "--target", "sm_89").stdout
    assert "plan of tensorrt_rtx" in shown
    assert "for sm_86, sm_89, fp32" in shown


def test_the_plan_of_a_file_with_several_targets(plan_engine_file: Path, image_engine_file: Path, tmp_path: Path) -> None:
    (gpu,) = read_engine_file(plan_engine_file, trusted=True)
    # Another model for the CPU would not be merged: the same one, by a CPU backend's name.
    cpu = replace(gpu, targets=("cpu",), device="cpu", segments=tuple(replace(s, backend="openvino") for s in gpu.segments))
    write_engine_file([cpu, gpu], tmp_path / "both.kiln")
    refused = invoke("export", tmp_path / "both.kiln", "--format", "plan", "-o", tmp_path / "m.plan")
    assert refused.exit_code == 1
    assert "holds several targets, name one" in refused.stderr
    assert invoke("export", tmp_path / "both.kiln", "--format", "plan", "-o", tmp_path / "m.plan", "--target", "sm_89").exit_code == 0
    refused = invoke("export", tmp_path / "both.kiln", "--format", "plan", "-o", tmp_path / "n.plan", "--target", "cpu")
    assert "segment_0 is run by openvino, not by tensorrt" in refused.stderr
    assert not (tmp_path / "n.plan").exists()


def test_the_plan_of_an_engine_of_several_segments(model_file: Path, plan_engine_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "parts.kiln"
    options = ("--backend", "tensorrt", "--target", "sm_89", "--min-block-size", "1", "--shape", "2x3x9x14", "--torch-executed-ops", "aten.relu")
    assert invoke("compile", f"{model_file}:image", "-o", path, *options).exit_code == 0
    refused = invoke("export", path, "--format", "plan", "-o", tmp_path / "m.plan")
    assert refused.exit_code == 1
    assert "this engine has 3: segment_0 (tensorrt), segment_1 (torch), segment_2 (tensorrt); name one with --segment segment_0" in refused.stderr
    taken = invoke("export", path, "--format", "plan", "-o", tmp_path / "m.plan", "--segment", "segment_2")
    assert taken.exit_code == 0
    assert "segment_2 is one of 3 segments" in taken.stderr
    assert "not by tensorrt" in invoke("export", path, "--format", "plan", "-o", tmp_path / "n.plan", "--segment", "segment_1").stderr
    assert "it has no segment 'segment_9'" in invoke("export", path, "--format", "plan", "-o", tmp_path / "n.plan", "--segment", "segment_9").stderr


@pytest.mark.parametrize("forged", [{"call_plan": 5}, {"inputs": "x"}, {"outputs": None}])
def test_the_plan_of_a_forged_file(forged: dict[str, object], plan_engine_file: Path, tmp_path: Path) -> None:
    (contents,) = read_engine_file(plan_engine_file, trusted=True)
    contents.segments[0].artifact.metadata.update(forged)
    write_engine_file([contents], tmp_path / "m.kiln")
    refused = invoke("export", tmp_path / "m.kiln", "--format", "plan", "-o", tmp_path / "m.plan")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("CorruptEngineFile")
    assert not (tmp_path / "m.plan").exists()
