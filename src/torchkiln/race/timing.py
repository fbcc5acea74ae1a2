"""timing: medians of several calls, measured in turns so that the machine's drift hits all alike.

This is the quick measurement that chooses; ``torchkiln.bench`` is the one to quote.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch

#: Between two calls of different libraries: their thread pools spin for some milliseconds after a call and would steal cores from the next one.
SETTLE_S = 0.01


def race_us(calls: Sequence[Callable[[], object]], device: torch.device, budget_s: float, rounds: int = 5) -> list[float]:
    """Median microseconds of each call, within about ``budget_s`` seconds each; every call is made at least ``rounds`` times."""
    samples: list[list[float]] = [[] for _ in calls]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for round_index in range(rounds):
            for position in range(len(calls)):
                index = (position + round_index) % len(calls)
                samples[index] += _visit(calls[index], device, budget_s / rounds)
    finally:
        if was_enabled:
            gc.enable()
    return [statistics.median(s) * 1e6 for s in samples]


def _visit(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """One turn: settle, one call that is not counted, then calls until the time is used up (at least one, at most 200)."""
    time.sleep(SETTLE_S)
    call()
    _synchronize(device)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while not found or (time.perf_counter() < end and len(found) < 200):
        start = time.perf_counter()
        call()
        _synchronize(device)
        found.append(time.perf_counter() - start)
    return found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
