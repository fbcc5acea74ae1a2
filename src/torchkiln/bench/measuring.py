"""measure: time several runners so that whatever disturbs the machine disturbs all of them alike.

The runners are interleaved in rounds, in a new seeded order each round, so that no runner always meets a warm or a busy machine and none
always follows the same neighbour. Runners are not interleaved call by call: the thread pools of OpenMP, TBB and ONNX Runtime keep spinning
for a while after a call, in wait for the next, and would take the cores from whichever runner comes next; and each runner would find its
weights gone from the caches, which no program that serves one model does. So each visit to a runner is a pause (other pools go to sleep),
unrecorded settle calls (caches, clocks and its own pool wake up), then recorded calls for a share of the time.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

#: (call index) -> what the runner returned. The clock is around this.
Call = Callable[[int], Any]
#: Waits until the device has done everything asked of it; does nothing on the CPU.
Synchronize = Callable[[], None]
#: (call, index, synchronize) -> nanoseconds of one call.
Clock = Callable[[Call, int, Synchronize], float]

#: Settle calls of a visit, at least.
MIN_SETTLE_CALLS = 2


@dataclass(frozen=True)
class Plan:
    """How long to measure. Times in seconds; see BenchmarkRequest for their meaning."""

    rounds: int
    min_time_s: float
    min_samples: int
    max_time_s: float
    pause_s: float
    settle_s: float
    seed: int

    @property
    def samples_per_visit(self) -> int:
        return -(-self.min_samples // self.rounds)


@dataclass
class Timed:
    """One runner under measurement. ``error`` is what it raised, after which it is left out of further rounds."""

    call: Call
    samples_ns: list[float]
    error: Exception | None = None

    def __init__(self, call: Call) -> None:
        self.call, self.samples_ns, self.error = call, [], None


def visiting_order(count: int, rounds: int, seed: int) -> list[list[int]]:
    """For each round a permutation of ``range(count)``: every runner once a round, in an order drawn from ``seed``."""
    generator = random.Random(seed)
    return [generator.sample(range(count), count) for _ in range(rounds)]


def measure(
    runners: Sequence[Timed],
    plan: Plan,
    synchronize: Synchronize,
    clock: Clock,
    on_visit: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fill ``samples_ns`` of each runner. The caller has warmed them up and is in inference mode.

    A runner that raises keeps the error and is not called again; the others go on. ``on_visit(done, total)`` is called after each visit.
    """
    order = visiting_order(len(runners), plan.rounds, plan.seed)
    done, total = 0, len(runners) * plan.rounds
    for visits in order:
        gc.collect()
        with _no_garbage_collection():
            for index in visits:
                runner = runners[index]
                if runner.error is None:
                    try:
                        _visit(runner, plan, synchronize, clock)
                    except Exception as error:  # any library's own kind: it becomes the row's status
                        runner.error = error
                done += 1
                on_visit(done, total)


def warm_up(call: Call, seconds: float, synchronize: Synchronize) -> None:
    """Call for ``seconds``, at least twice (profiling executors compile at the second call)."""
    _call_for(call, seconds, 2, synchronize)


def _visit(runner: Timed, plan: Plan, synchronize: Synchronize, clock: Clock) -> None:
    time.sleep(plan.pause_s)
    start = _call_for(runner.call, plan.settle_s, MIN_SETTLE_CALLS, synchronize)
    at_least_ns, at_most_ns = plan.min_time_s / plan.rounds * 1e9, plan.max_time_s / plan.rounds * 1e9
    taken, spent_ns = 0, 0.0
    while taken == 0 or (spent_ns < at_most_ns and (spent_ns < at_least_ns or taken < plan.samples_per_visit)):
        elapsed = clock(runner.call, start + taken, synchronize)
        runner.samples_ns.append(elapsed)
        taken, spent_ns = taken + 1, spent_ns + elapsed


def _call_for(call: Call, seconds: float, at_least: int, synchronize: Synchronize) -> int:
    """Unrecorded calls; returns how many."""
    end = time.perf_counter() + seconds
    count = 0
    while count < at_least or time.perf_counter() < end:
        call(count)
        synchronize()
        count += 1
    return count


def host_clock(call: Call, index: int, synchronize: Synchronize) -> float:
    """From an idle device to an idle device on the host's clock: what a caller who needs the result waits."""
    synchronize()
    start = time.perf_counter_ns()
    call(index)
    synchronize()
    return time.perf_counter_ns() - start


def event_clock(call: Call, index: int, synchronize: Synchronize) -> float:
    """Between two CUDA events around the call on the current stream: device time and launch gaps, without the final wait."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    synchronize()
    start.record()
    call(index)
    end.record()
    synchronize()
    return start.elapsed_time(end) * 1e6


CLOCKS: dict[str, Clock] = {"host": host_clock, "events": event_clock}


def synchronizer(device: torch.device) -> Synchronize:
    """``torch.cuda.synchronize`` of that device, or nothing on the CPU."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
