"""Entry: one runner of a case, from its build to its finished row."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..dtypes import ENABLED_PRECISIONS
from ..errors import MissingPackage
from ..log import STEPS, log
from ..verify.parity import Parity, compare
from ..verify.tolerance import tolerance_for
from .build_limit import BuildTimeout, build_limit
from .case import Case
from .measuring import Call, Timed, synchronizer, warm_up
from .memory import MemoryProbe
from .peers.contract import Refusal, Refused, Runner
from .request import BenchmarkRequest
from .result import Latency, Row
from .statistics import summarize

_MAX_REASON_CHARS = 300
_NOISY_TAIL, _NOISY_BODY = 1.5, 2.0


@dataclass
class Entry:
    """A row in the making. ``runner`` and ``timed`` are None when the row's status already says why there are no figures."""

    row: Row
    runner: Runner | None = None
    timed: Timed | None = None


def make_entry(
    case: Case,
    name: str,
    precision: str,
    refusal: Refusal | None,
    build: Callable[[], Runner],
    request: BenchmarkRequest,
) -> Entry:
    """Build a runner, compare its outputs, warm it up and take its memory; whatever goes wrong becomes the row's status."""
    row = Row(case.name, case.shape, name, precision, str(case.device), "ok", notes=list(case.notes))
    if refusal is not None:
        row.status, row.reason = refusal.status, refusal.reason
        return Entry(row)
    synchronize = synchronizer(case.device)
    start = time.perf_counter()
    try:
        probe = MemoryProbe(case.device)
        start = time.perf_counter()
        with torch.no_grad(), build_limit(request.max_build_s):
            runner = build()
            call = make_call(runner, case, request.transfers)
            with torch.inference_mode():
                call(0)
                synchronize()
        row.build_s = time.perf_counter() - start
        row.options, row.chosen_precision = runner.options, runner.chosen_precision
        row.notes += runner.notes
        with torch.inference_mode():
            note_errors(row, runner, case)
            probe.start_peak()
            warm_up(call, request.warm_up_s, synchronize)
        row.peak_memory_bytes = probe.peak_bytes() if runner.torch_memory or case.device.type != "cuda" else None
    except BuildTimeout:
        row.status, row.reason = "timeout", f"the build took longer than {request.max_build_s:g} s"
        row.build_s = time.perf_counter() - start
        return Entry(row)
    except Refused as refused:
        row.status, row.reason = refused.refusal.status, refused.refusal.reason
        return Entry(row)
    except Exception as error:  # the peer's own kind of failure, whatever it is, is what its row reports
        note_failure(row, error)
        return Entry(row)
    return Entry(row, runner, Timed(call))


def finish_entry(entry: Entry, case: Case, request: BenchmarkRequest) -> None:
    """The figures of a measured runner, and its errors once more: a runner must still be right after all those calls."""
    row, runner, timed = entry.row, entry.runner, entry.timed
    if runner is None or timed is None:
        return
    error = timed.error
    if error is None:
        try:
            with torch.inference_mode():
                note_errors(row, runner, case)
        except Exception as late:  # as in make_entry
            error = late
    if error is not None:
        note_failure(row, error)
        return
    row.samples = len(timed.samples_ns)
    row.latency_ms = summarize(timed.samples_ns)
    row.throughput_per_s = case.batch_size / (row.latency_ms.median / 1e3)
    if row.samples < request.min_samples:
        row.notes.append(f"{row.samples} calls only, fewer than the {request.min_samples} asked for: max_time_s ended the measurement")
    if is_noisy(row.latency_ms):
        row.notes.append("noisy: minimum, median and 90th percentile are far apart; is the machine busy?")
    _judge(row, request)


def make_call(runner: Runner, case: Case, transfers: bool) -> Call:
    """What the clock times, as a function of the call's number. Kept short: it is measured too."""
    function, sets = runner.call, list(runner.input_sets)
    count = len(sets)
    if transfers and case.device.type == "cuda" and runner.on_device:
        host_sets = [tuple(t.cpu().pin_memory() for t in inputs) for inputs in sets]

        def with_transfers(index: int) -> Any:
            inputs = [t.to(case.device, non_blocking=True) for t in host_sets[index % count]]
            if not runner.torch_stream:  # nothing else makes it wait for the copies
                torch.cuda.current_stream(case.device).synchronize()
            return [t.cpu() for t in runner.tensors(function(*inputs))]

        return with_transfers
    if count == 1:
        only = sets[0]
        return lambda index: function(*only)
    return lambda index: function(*sets[index % count])


def note_errors(row: Row, runner: Runner, case: Case) -> None:
    """Worsen the row's error figures by the outputs on every input set. Raises UserError when shapes or numbers of outputs differ."""
    for inputs, references in zip(runner.input_sets, case.references, strict=False):
        parity = compare(runner.tensors(runner.call(*inputs)), references)
        worst = Parity(row.relative_error or 0.0, row.max_abs_error or 0.0, 1.0)
        row.relative_error = max(worst.relative_error, parity.relative_error)
        row.max_abs_error = max(worst.max_abs_error, parity.max_abs_error)


def note_failure(row: Row, error: Exception) -> None:
    """Turn an exception into the row's status; its traceback goes to the log."""
    log(STEPS, "bench: %s %s on %s failed:\n%s", row.runner, row.precision, row.model, "".join(traceback.format_exception(error)))
    text = " ".join(str(error).split())
    if len(text) > _MAX_REASON_CHARS:  # some libraries put the cause first, some last
        half = _MAX_REASON_CHARS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    row.status = "missing" if isinstance(error, MissingPackage) else "failed"
    row.reason = text if isinstance(error, MissingPackage) else f"{type(error).__name__}: {text}"
    row.relative_error = row.max_abs_error = row.peak_memory_bytes = None


def is_noisy(latency: Latency) -> bool:
    """Whether something else had a hand in the figures: a tenth of the calls, or all but a few of them, took far longer than they need."""
    return latency.p90 > _NOISY_TAIL * latency.median or latency.median > _NOISY_BODY * latency.min


def _judge(row: Row, request: BenchmarkRequest) -> None:
    if row.relative_error is None:
        return
    allowed = [ENABLED_PRECISIONS[row.precision]] if row.precision in ENABLED_PRECISIONS else list(request.precisions)
    tolerance = tolerance_for(True, allowed, torch.device(row.device))
    assert tolerance is not None  # None is for checks turned off
    row.within_tolerance = row.relative_error <= tolerance
    if not math.isfinite(row.relative_error):
        row.notes.append("wrong: the output is not finite where the reference is, or the reference is all zeros")
    elif not row.within_tolerance:
        row.notes.append(f"inaccurate: relative error {row.relative_error:.2g}, tolerance for {row.precision} is {tolerance:g}")
