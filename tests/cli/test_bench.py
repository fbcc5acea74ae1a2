"""``torchkiln bench``: the request it makes, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from torchkiln import bench as benchmark
from torchkiln.bench.request import BenchmarkRequest

from .conftest import invoke

QUICK = ("--min-time", "0.02", "--rounds", "2", "--backend", "openvino")


def test_figures_of_every_runner(model_file: Path, tmp_path: Path) -> None:
    report, figures = tmp_path / "report", tmp_path / "figures.json"
    result = invoke("bench", f"{model_file}:image", "--shape", "2x3x9x14", "--peers", "eager,openvino", "--json", figures, "--report", report, *QUICK)
    assert result.exit_code == 0, result.output
    rows = json.loads(figures.read_text())["rows"]
    assert {(r["runner"], r["precision"], r["status"]) for r in rows} == {(n, "fp32", "ok") for n in ("torchkiln", "eager", "openvino")}
    assert all(r["latency_ms"]["median"] > 0 and r["relative_error"] < 1e-4 for r in rows)
    assert all(r["shape"] == "2x3x9x14" for r in rows)
    assert "torchkiln" in result.stdout
    assert list(report.glob("*.md"))
    assert list(report.glob("*.png"))


def test_an_engine_file_and_a_named_input(engine_file: Path, model_file: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    shapes = ("--shape", "scale:1x3x6", "--shape", "ids:1x3@int64")
    result = invoke("bench", f"{model_file}:make", engine_file, *shapes, "--peers", "none", "--json", figures, *QUICK)
    assert result.exit_code == 0, result.output
    rows = json.loads(figures.read_text())["rows"]
    assert [(r["model"], r["runner"], r["status"], r["shape"]) for r in rows] == [
        (f"{model_file}:make", "torchkiln", "ok", "1x3,1x3x6"),
        ("net.kiln", "torchkiln", "ok", "1x3,1x3x6"),
    ]


def test_every_option_reaches_the_request(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[BenchmarkRequest] = []

    def remember(request: BenchmarkRequest) -> benchmark.BenchmarkResult:
        asked.append(request)
        return benchmark.BenchmarkResult({}, [])

    monkeypatch.setattr(benchmark, "run_benchmark", remember)
    monkeypatch.setattr(benchmark, "print_table", lambda result, console: None)
    options = "--precision bf16,fp16 --peers seed,openvino --sweep-resolution 32,48 --min-time 30 --rounds 3"
    options += " --transfers --seed 7 --threads 1 --clock events --pause 0.5 --max-build 40 --no-tf32 --optimization-level 1"
    result = invoke("bench", f"{model_file}:image", "--shape", "2x3x9x14", *options.split())
    assert result.exit_code == 0, result.output
    (request,) = asked
    assert request.precisions == [torch.bfloat16, torch.float16]
    assert request.peers == ["seed", "openvino"]
    assert request.sweep_resolution == [32, 48]
    assert (request.min_time_s, request.rounds, request.transfers, request.seed, request.num_threads) == (30, 3, True, 7, 1)
    assert request.max_time_s >= request.min_time_s
    assert (request.clock, request.pause_s, request.max_build_s) == ("events", 0.5, 40)
    assert request.tf32 is False
    assert request.engine_options == {"backend": "auto", "optimization_level": 1}


def test_a_report_that_cannot_be_written_is_found_before_measuring(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "run_benchmark", lambda request: pytest.fail("measured"))
    file = tmp_path / "report"
    file.write_text("here before")
    result = invoke("bench", f"{model_file}:image", "--shape", "2x3x9x14", "--report", file)
    assert result.exit_code == 2, result.output
    assert "is a file: expected a folder" in " ".join(result.stderr.split())
    monkeypatch.setattr("torchkiln.bench.charts.find_spec", lambda name: None)
    result = invoke("bench", f"{model_file}:image", "--shape", "2x3x9x14", "--report", tmp_path / "other")
    assert result.exit_code == 1, result.output
    assert 'pip install "torchkiln[report]"' in result.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--shape", "1x3x9x14", "--peers", "eagre"], "'eager'"),
        (["--shape", "1x3x9x14", "--rounds", "0"], "rounds"),
        (["--shape", "img:1x3x9x9"], "no input 'img'"),
    ],
)
def test_what_cannot_be_measured(model_file: Path, options: list[str], expected: str) -> None:
    result = invoke("bench", f"{model_file}:image", *options)
    assert result.exit_code == 1, result.output
    assert expected in result.stderr
