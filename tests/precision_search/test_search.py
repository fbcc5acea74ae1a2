"""precision="auto" on a backend that states its times: fp32 4 ms a layer, bf16 2, int8 1 (see conftest)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import torchkiln
from torchkiln.engine.report import Report
from torchkiln.errors import ParityFailed, UserError
from torchkiln.ptq import CacheCalibrator

from .models import draw

SHAPE = (3, 2, 13, 11)


@pytest.fixture
def search(rounding_backend, constant_model):
    def run(**options):
        return torchkiln.compile(constant_model, [draw(*SHAPE)], backend="inductor", precision="auto", **options)

    return run


def point_of(report):
    (kept,) = [point for point in report.frontier.points if point.is_kept]
    return kept


def test_a_wide_budget_takes_the_fastest(search, calibrator, rounding_backend) -> None:
    report = search(max_error=0.9, calibrator=calibrator).report()
    assert report.precision == "int8+bf16"
    assert point_of(report).layers == {"bf16": 1, "int8": 3}
    assert all(point.within for point in report.frontier.points)
    assert len(rounding_backend.built) == 4  # nothing is faster than the narrowest, so nothing else is built
    assert report.frontier.layers[1].error == {}
    assert report.settings["enabled_precisions"] == ["bf16", "int8"]


def test_the_planted_layer_is_kept_and_the_report_says_how(search, calibrator, constant_model, rounding_backend, tmp_path) -> None:
    report = search(max_error=0.005, calibrator=calibrator).report()
    frontier = report.frontier
    levels = {layer.name: layer.precision for layer in frontier.layers}
    assert levels == {"stem": "fp32", "offset": "fp32", "plain": "int8", "head": "int8"}  # the stem gives the large constant, the offset reads it
    kept = point_of(report)
    assert kept.within
    assert kept.relative_error <= 0.005
    assert (kept.median_ms, kept.layers) == (10.0, {"fp32": 2, "int8": 2})
    assert {p.median_ms for p in frontier.points} >= {5.0, 7.0, 8.0, 10.0, 16.0}
    assert report.parity.relative_error == kept.relative_error
    assert report.parity.tolerance == 0.005
    mixtures = [text for text in rounding_backend.built if "layers=" in text]
    assert 1 <= len(mixtures) <= 8
    assert len(set(mixtures)) == len(mixtures)

    layer = next(one for one in frontier.layers if one.name == "offset")
    assert layer.error["int8"] > layer.error["bf16"] > 0.005
    assert layer.time_us.keys() == {"fp32", "bf16", "int8"}
    assert sum(one.time_us["fp32"] for one in frontier.layers) == pytest.approx(16e3)
    assert "divided as PyTorch's times are" in frontier.times_from

    outside = [candidate for candidate in report.candidates if candidate.status == "parity"]
    assert len(outside) == sum(not point.within for point in frontier.points) > 0
    assert "asked 0.005" in outside[0].reason

    text = str(report)
    assert "precision search, max_error 0.005" in text
    assert "keep_float32={" in text
    assert "QuantizeOptions(skip=(" in text
    assert Report.from_json(report.as_json()).frontier == frontier

    pytest.importorskip("matplotlib")
    frontier.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"plot\.xyz: expected a name that ends in"):
        frontier.plot(tmp_path / "plot.xyz")

    options = torchkiln.ptq.QuantizeOptions(head=True, skip=tuple(frontier.skip))
    again = torchkiln.ptq.DataLoaderCalibrator([draw(*SHAPE, seed=seed) for seed in range(3)], options=options, algorithm="max")
    engine = torchkiln.compile(
        constant_model,
        [torchkiln.Input(SHAPE)],
        backend="inductor",
        enabled_precisions=frontier.enabled_precisions,
        keep_float32=frontier.keep_float32,
        calibrator=again,
        verify=0.005,
    )
    same = next(c for c in engine.report().candidates if c.name == f"inductor {report.precision}")
    assert same.median_ms == kept.median_ms
    assert same.relative_error == pytest.approx(kept.relative_error, rel=0.1)


def test_a_narrow_budget_takes_float32_within_max_builds(search, rounding_backend) -> None:
    report = search(max_error=1e-5, max_builds=1).report()
    assert report.precision == "fp32"
    assert sum("layers=" in text for text in rounding_backend.built) <= 1
    assert "int8: not among the candidates: it needs a calibrator" in report.notes
    rounding_backend.built.clear()
    report = search(max_error=1e-5, max_builds=0, keep_float32={"head"}).report()
    assert report.frontier.keep_float32 == report.settings["keep_float32"] == []  # beside float32 alone it is refused
    assert sorted(set(rounding_backend.built)) == ["inductor bf16", "inductor fp32"]
    assert any("ended after max_builds=0" in note for note in report.notes)


def test_mixtures_that_cannot_be_built_end_with_float32(search, rounding_backend) -> None:
    rounding_backend.fails_when = lambda candidate: bool(candidate.options)
    report = search(max_error=1e-3).report()
    assert report.precision == "fp32"
    assert any(c.status == "failed" and c.reason == "as the test asks" for c in report.candidates)


def test_the_callers_accuracy_decides(search, calibrator, constant_model) -> None:
    seen = []

    def accuracy(engine) -> float:
        seen.append(engine)
        return 0.9 - min(0.5, float((engine(draw(*SHAPE)) - expected).norm() / expected.norm()))

    with torch.no_grad():
        expected = constant_model(draw(*SHAPE))
    report = search(accuracy=accuracy, max_drop=0.02, calibrator=calibrator).report()
    kept = point_of(report)
    assert kept.accuracy >= 0.9 - 0.02
    assert report.frontier.budget == "max_drop"
    assert len(seen) == len(report.frontier.points)
    assert any(not point.within and point.accuracy < 0.88 for point in report.frontier.points)
    assert "accuracy" in str(report)
    with pytest.raises(UserError, match="accuracy: expected a finite number of the engine, got nan"):
        search(accuracy=lambda engine: math.nan, max_drop=0.1)


def test_requests_that_make_no_sense(search, constant_model, calibrator, tmp_path, rounding_backend) -> None:
    with pytest.raises(ParityFailed, match="not even float32 is within max_error=1e-30"):
        torchkiln.compile(constant_model, [draw(*SHAPE)], backend="inductor", precision="auto", max_error=1e-30, verify_dtype=torch.float64)
    with pytest.raises(UserError, match="it starts from float32, and the model is in bf16"):
        torchkiln.compile(nn.Linear(3, 2).bfloat16().eval(), [torch.rand(2, 3).bfloat16()], precision="auto", max_error=0.1)
    calibrator._found.write(tmp_path / "cache.json")
    with pytest.raises(UserError, match="the calibration cache has no data"):
        torchkiln.compile(
            constant_model, [torchkiln.Input(SHAPE)], precision="auto", max_error=0.1, calibrator=CacheCalibrator(tmp_path / "cache.json")
        )
