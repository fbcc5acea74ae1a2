"""run_benchmark: the measurement, top to bottom. cases -> runners built and checked -> measured in rounds -> rows."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ..dtypes import precision_name
from ..errors import BackendUnavailable, UserError
from ..fp32_math import fp32_math
from .case import Case, make_cases
from .entry import Entry, finish_entry, make_entry
from .environment import command_line, describe_environment
from .measuring import CLOCKS, Plan, measure, synchronizer
from .peers import INT8_PEERS, choose_peers
from .peers.contract import Peer, Refusal
from .peers.engine import EngineBuilder, compile_engine, engine_runner
from .progress import Progress, show_progress
from .request import BenchmarkModel, BenchmarkRequest
from .result import ENGINE_RUNNER, BenchmarkResult, Row

#: Builds one entry when it is its turn; the label is for the progress bar.
Step = tuple[str, Callable[[], Entry]]


def run_benchmark(request: BenchmarkRequest, *, build_engine: EngineBuilder = compile_engine) -> BenchmarkResult:
    """Measure every model of ``request`` with every peer and the engine, at every precision.

    A runner that is missing, makes no sense here, fails, or takes too long to build is a row that says so. The caller's models are not changed.

    Args:
        request: what to measure.
        build_engine: ``(case, enabled precisions, engine options) -> Engine``; default ``torchkiln.compile``.

    Raises:
        UserError: the request cannot be carried out (an unknown peer, a sweep over a model that takes no images, CUDA events on the CPU).
        BackendUnavailable: the device asked for is not on this machine.
    """
    device = request.resolved_device
    _check_device(device, request)
    peers = choose_peers(request.peers)
    num_threads = request.num_threads or torch.get_num_threads()
    environment = describe_environment(device, num_threads)
    rows: list[Row] = []
    with _torch_settings(num_threads, device, request.tf32), _frozen_garbage(), show_progress(request.progress) as progress:
        for entry in request.models:
            for case in make_cases(request, entry):
                rows += _run_case(case, entry, peers, request, build_engine, progress)
    return BenchmarkResult(environment, rows, command_line(), _settings(request))


def _run_case(
    case: Case, model: BenchmarkModel, peers: list[Peer], request: BenchmarkRequest, build_engine: EngineBuilder, progress: Progress
) -> list[Row]:
    _forget_compiled_code()
    case.compute_references()
    steps = list(_steps(case, model, peers, request, build_engine))
    entries: list[Entry] = []
    for number, (label, step) in enumerate(steps):
        progress(f"{case.name} {case.shape}: building {label}", number, len(steps))
        entries.append(step())
    timed = [entry.timed for entry in entries if entry.timed is not None]
    plan = Plan(
        rounds=request.rounds,
        min_time_s=request.min_time_s,
        min_samples=request.min_samples,
        max_time_s=request.max_time_s,
        pause_s=request.pause_s,
        settle_s=request.settle_s,
        seed=request.seed,
    )
    with torch.inference_mode():
        measure(timed, plan, synchronizer(case.device), CLOCKS[request.clock], partial(progress, f"{case.name} {case.shape}: measuring"))
    for entry in entries:
        finish_entry(entry, case, request)
    rows = [entry.row for entry in entries]
    del entries, timed, steps
    _release_memory(case.device)
    return rows


def _steps(case: Case, model: BenchmarkModel, peers: list[Peer], request: BenchmarkRequest, build_engine: EngineBuilder) -> Iterator[Step]:
    """In building order: quick peers, the engine, slow peers."""
    measured = [(peer, p) for peer in peers for p in request.precisions if (p == torch.int8) == (peer.name in INT8_PEERS)]
    yield from (_peer_step(case, peer, p, request) for peer, p in measured if not peer.slow_build)
    if model.engine is not None:
        engine = model.engine
        yield _engine_step(case, engine.report().precision, lambda: engine, request, ready=True)
    else:
        wanted = [(precision_name(p), frozenset({p})) for p in request.precisions]
        if len(request.precisions) > 1:
            wanted.append(("auto", frozenset(request.precisions)))
        for label, enabled in wanted:
            yield _engine_step(case, label, partial(build_engine, case, enabled, _engine_options(request)), request)
    yield from (_peer_step(case, peer, p, request) for peer, p in measured if peer.slow_build)


def _peer_step(case: Case, peer: Peer, precision: torch.dtype, request: BenchmarkRequest) -> Step:
    label = precision_name(precision)

    def step() -> Entry:
        refusal = Refusal("skipped", "no source model: an engine file alone") if case.model is None else peer.refuse(case, precision)
        return make_entry(case, peer.name, label, refusal, lambda: peer.build(case, precision), request)

    return f"{peer.name} {label}", step


def _engine_step(case: Case, precision: str, build: Callable[[], object], request: BenchmarkRequest, ready: bool = False) -> Step:
    def step() -> Entry:
        entry = make_entry(case, ENGINE_RUNNER, precision, None, lambda: engine_runner(build(), case), request)
        if ready:
            entry.row.build_s = None  # it was built elsewhere
        return entry

    return f"{ENGINE_RUNNER} {precision}", step


def _check_device(device: torch.device, request: BenchmarkRequest) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable("benchmark: device cuda: this machine has no usable GPU; measure on the CPU with device='cpu'")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"benchmark: device: expected cpu or cuda, got {device}: no other device can be synchronised reliably yet")
    if request.clock == "events" and device.type != "cuda":
        raise UserError("benchmark: clock: 'events' are CUDA events; use clock='host' on the CPU")
    if request.transfers and device.type != "cuda":
        raise UserError("benchmark: transfers: on the CPU there is nothing to transfer; leave transfers out")
    if request.tf32 is not None and device.type != "cuda":
        raise UserError("benchmark: tf32: the CPU computes float32 in full; leave tf32 out")


def _engine_options(request: BenchmarkRequest) -> dict[str, Any]:
    return {**request.engine_options, **({} if request.tf32 is None else {"disable_tf32": not request.tf32})}


@contextmanager
def _torch_settings(num_threads: int, device: torch.device, tf32: bool | None) -> Iterator[None]:
    """The process as every runner finds it, and as it was afterwards."""
    threads, cudnn_benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(num_threads)
    torch.backends.cudnn.benchmark = _cudnn_benchmark(device)
    try:
        with fp32_math(None if tf32 is None else "tf32" if tf32 else "ieee"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = cudnn_benchmark


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Objects that exist before the benchmark are not garbage: without them each of the collections between runners takes no time."""
    frozen_by_caller = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_by_caller:
            gc.unfreeze()


def _forget_compiled_code() -> None:
    """A fresh Dynamo for each case; within a case every compiled runner has a code object of its own (see peers/compiled.py)."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _release_memory(device: torch.device) -> None:
    _forget_compiled_code()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _cudnn_benchmark(device: torch.device) -> bool:
    """Whether cuDNN tries its algorithms and keeps the fastest, for every runner of the process: on CUDA, as anybody after speed would have it."""
    return device.type == "cuda"


def _settings(request: BenchmarkRequest) -> dict[str, object]:
    """How it was measured, for who reads the file."""
    names = ("min_time_s", "min_samples", "max_time_s", "rounds", "warm_up_s", "pause_s", "settle_s", "max_build_s")
    more = ("transfers", "tf32", "clock", "input_count", "calibration_count", "seed")
    return {
        **{name: getattr(request, name) for name in (*names, *more)},
        "precisions": [precision_name(p) for p in request.precisions],
        "cudnn_benchmark": _cudnn_benchmark(request.resolved_device),
        "peers": [peer.name for peer in choose_peers(request.peers)],
        "engine_options": {name: str(value) for name, value in request.engine_options.items()},
    }
