"""What the bench tests share: a small model, an engine that is not one, rows made by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torchkiln.bench.case import Case
from torchkiln.bench.result import BenchmarkResult, Latency, Row
from torchkiln.engine.report import Report


def small_model() -> nn.Module:
    """A convolution, a norm and a linear layer; sizes that divide nothing evenly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5))
    return model.eval()


class FakeEngine:
    """Called like an Engine; computes with ``function``, after ``delay_s``."""

    def __init__(self, function: Callable[..., Any], delay_s: float = 0.0) -> None:
        self.function, self.delay_s, self.calls = function, delay_s, 0
        self.device = torch.device("cpu")

    def __call__(self, *inputs: torch.Tensor) -> Any:
        self.calls += 1
        if self.delay_s:
            time.sleep(self.delay_s)
        return self.function(*inputs)

    def report(self) -> Report:
        return Report(model="fake", device="cpu", backend="fake", precision="fp32", enabled_precisions=["fp32"])


def build_exact(case: Case, precisions: frozenset[torch.dtype], options: Mapping[str, Any]) -> FakeEngine:
    """An engine builder whose engine is the source model."""
    assert case.model is not None
    return FakeEngine(case.model)


def make_row(runner: str, precision: str = "fp32", median: float | None = 1.0, **values: Any) -> Row:
    """A measured row (or, with median=None, a failed one)."""
    row = Row("net", "2x3x9x11", runner, precision, "cpu", "ok" if median is not None else "failed")
    if median is None:
        row.reason = "it | broke"
    else:
        row.latency_ms = Latency(median * 0.9, median * 1.25, median, median * 1.1, median * 1.2, median * 1.3, median * 1.4)
        row.throughput_per_s, row.samples, row.build_s, row.peak_memory_bytes = 2000 / median, 21, 0.5, 3_000_000
        row.relative_error, row.max_abs_error, row.within_tolerance = 1e-6, 2e-6, True
    for name, value in values.items():
        setattr(row, name, value)
    return row


def make_result(*rows: Row, **environment: Any) -> BenchmarkResult:
    described = {
        "cpu": {"model": "test", "isa": []},
        "gpus": [],
        "num_threads": 2,
        "versions": {"torch": "2.11"},
        "date": "2026-01-01",
        **environment,
    }
    return BenchmarkResult(described, list(rows), command="torchkiln bench net", settings={"rounds": 3})
