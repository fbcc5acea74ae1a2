"""BenchmarkResult: the rows of a benchmark and the machine they were measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError

#: The engine's name in the ``runner`` column.
ENGINE_RUNNER = "torchkiln"

#: ok: measured. missing: a package or device it needs is not here. skipped: makes no sense here. failed: raised. timeout: build over the limit.
STATUSES = ("ok", "missing", "skipped", "failed", "timeout")

#: What must agree before rows of two runs may stand in one table.
_SAME_MACHINE = ("cpu", "gpus", "num_threads", "versions")


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call, over all recorded calls. Percentiles interpolate linearly."""

    min: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass
class Row:
    """One runner on one model, shape and precision.

    Attributes:
        shape: the inputs' shapes, as "1x3x224x224", several joined by ",".
        precision: "fp32", "bf16", "fp16", "int8", or "auto" for an engine that may use any of those asked.
        status: one of STATUSES; ``reason`` explains all but "ok".
        latency_ms: None unless status is "ok".
        throughput_per_s: batch items (first dimension of the first input) per second at the median latency.
        relative_error: relative L2 error over all outputs, against the source model in float32; inf when not finite or meaningless.
        build_s: from the source model to the first finished call.
        peak_memory_bytes: see ``torchkiln.bench.memory``; None where it cannot be measured.
        within_tolerance: whether ``relative_error`` is what the precision allows (torchkiln.verify.tolerance); a faster wrong answer is no
            answer, so such a row is never marked best. None without a reference.
        samples: recorded calls.
        options: how the runner was set up, for a reader.
        chosen_precision: what an engine computes in: its choice under "auto", or a wider one than asked.
        notes: what a reader should know before trusting the row.
    """

    model: str
    shape: str
    runner: str
    precision: str
    device: str
    status: str
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    relative_error: float | None = None
    max_abs_error: float | None = None
    build_s: float | None = None
    peak_memory_bytes: int | None = None
    within_tolerance: bool | None = None
    reason: str = ""
    samples: int = 0
    options: str = ""
    chosen_precision: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        return (self.model, self.shape, self.runner, self.precision, self.device)

    @property
    def median_ms(self) -> float:
        """Infinite for a row that was not measured, so that it sorts last."""
        return self.latency_ms.median if self.latency_ms else float("inf")

    @property
    def status_text(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.status


@dataclass
class BenchmarkResult:
    """All rows of a run. ``runs`` lists date and command of each run when several were merged."""

    environment: dict[str, Any]
    rows: list[Row]
    command: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def groups(self) -> dict[tuple[str, str, str], list[Row]]:
        """Rows by (model, shape, device), in the order measured: the rows that can be compared with each other."""
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.model, row.shape, row.device), []).append(row)
        return groups


def merge_results(results: Sequence[BenchmarkResult]) -> BenchmarkResult:
    """One result from several runs on one machine. Where two hold the same (model, shape, runner, precision, device), the later one stands.

    Runners are only comparable within one run, so measure all runners of one model in one run and merge models, not runners.
    Raises UserError when the runs differ in processor, GPU, threads or library versions.
    """
    if not results:
        raise UserError("merge_results: expected at least one result, got none")
    first = results[0]
    for index, other in enumerate(results[1:], start=1):
        for name in _SAME_MACHINE:
            if other.environment.get(name) != first.environment.get(name):
                raise UserError(
                    f"merge_results: results[{index}] was measured under another {name}: expected {first.environment.get(name)}, "
                    f"got {other.environment.get(name)}. Rows of different machines do not compare; keep them in separate files."
                )
    rows: dict[tuple[str, ...], Row] = {}
    for row in _chain(results):
        rows[row.key] = row
    runs = [run for result in results for run in (result.runs or [_run_of(result)])]
    return BenchmarkResult(environment=first.environment, rows=list(rows.values()), command=first.command, settings=first.settings, runs=runs)


def _chain(results: Sequence[BenchmarkResult]) -> Iterable[Row]:
    return (row for result in results for row in result.rows)


def _run_of(result: BenchmarkResult) -> dict[str, Any]:
    return {
        "date": result.environment.get("date"),
        "commit": result.environment.get("commit"),
        "command": result.command,
        "settings": result.settings,
        "models": sorted({row.model for row in result.rows}),
    }
