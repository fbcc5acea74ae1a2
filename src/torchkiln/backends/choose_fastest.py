"""choose_fastest: which of a few ways to run one segment has the lowest time. For builders; the race between backends is elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_ROUNDS, _BUDGET_S = 40, 1.0
#: The first way stays unless another takes at most this part of its time: less is noise.
_WORTH = 0.93


def choose_fastest(runs: Sequence[Callable[[Sequence[torch.Tensor]], Any]], inputs: Sequence[torch.Tensor]) -> tuple[int, list[float]]:
    """The index of the fastest run (0, the default, when none is clearly faster) and the minimum microseconds of each.

    The minimum of interleaved calls, since whatever else the machine does only ever adds time. Takes about a second at most.
    """
    for run in runs:
        run(inputs)
        run(inputs)
    best = [float("inf")] * len(runs)
    end = time.perf_counter() + _BUDGET_S
    for round_index in range(_ROUNDS):
        for position in range(len(runs)):
            index = (position + round_index) % len(runs)
            runs[index](inputs)  # not counted: the run before left the caches, and its threads, as they are
            start = time.perf_counter()
            runs[index](inputs)
            best[index] = min(best[index], time.perf_counter() - start)
        if round_index >= 3 and time.perf_counter() > end:
            break
    winner = min(range(len(runs)), key=lambda i: best[i])
    return (winner if best[winner] <= best[0] * _WORTH else 0), [t * 1e6 for t in best]
