"""choose_streams: on how many streams a plan is fastest, measured on this GPU or remembered from before."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ...engine.graph_capture import CaptureFailed
from ...errors import BuildFailed
from ...log import REJECTS, STEPS, log
from .plan import Code, Plan, encode_plan
from .time_plans import time_plans
from .timing_cache import Entry, TimingCache, environment, key

#: Less than this share of the time is not worth a second stream.
LEAST_GAIN = 0.01
ROUNDS = 15

TACTIC = "streams"


def choose_streams(
    plans: Sequence[Plan], codes: Sequence[Code], constants: Mapping[str, torch.Tensor], cache: TimingCache, device: torch.device
) -> Plan:
    """The fastest of one segment's plans for different numbers of streams, of which the first has one; with the times of all."""
    if len(plans) == 1:
        return plans[0]
    name = key(_digest(plans), environment(device))
    times = _remembered(cache.get(name), plans)
    if times is None:
        try:
            times = measure_plans(plans, codes, constants, device)
        except (CaptureFailed, BuildFailed, RuntimeError) as error:  # a step that cannot be captured, or memory that is short
            log(REJECTS, "cuda: plans on several streams cannot be measured: %s", str(error).strip().splitlines()[0] if str(error) else error)
            if torch.cuda.is_available():
                torch.cuda.synchronize(device)  # raises again when the error is one that the process does not survive
            return plans[0]
        best = fastest(times)
        tried = [[TACTIC, {TACTIC: plan.streams}, us, ""] for plan, us in zip(plans, times, strict=True)]
        cache.put(name, Entry(TACTIC, {TACTIC: plans[best].streams}, times[best], tried))
    best = fastest(times)
    measured = tuple((plan.streams, us) for plan, us in zip(plans, times, strict=True))
    log(STEPS, "cuda: %s: %d chosen", ", ".join(f"{streams} streams {us:.1f} us" for streams, us in measured), plans[best].streams)
    return replace(plans[best], measured=measured)


def fastest(times_us: Sequence[float]) -> int:
    """The place of the least time; the first's, unless another is better by LEAST_GAIN."""
    best = min(range(len(times_us)), key=lambda place: times_us[place])
    return best if times_us[best] <= times_us[0] * (1 - LEAST_GAIN) else 0


def measure_plans(plans: Sequence[Plan], codes: Sequence[Code], constants: Mapping[str, torch.Tensor], device: torch.device) -> list[float]:
    """Median microseconds of each plan in a CUDA graph. Raises what ``time_plans`` raises, BuildFailed also when the plans' results are not the same,
    bit for bit."""
    return [statistics.median(rounds) for rounds in time_plans(plans, codes, constants, device, ROUNDS, same_results=True)]


def _digest(plans: Sequence[Plan]) -> str:
    """The same text for plans that run the same, whatever was measured of their steps."""
    texts = []
    for plan in plans:
        data = encode_plan(plan)
        data["infos"] = [[info.op, info.tactic, dict(info.config), info.shape, info.dtype, info.math] for info in plan.infos]
        del data["constants"]
        texts.append(json.dumps(data, sort_keys=True))
    return "streams " + hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _remembered(entry: Entry | None, plans: Sequence[Plan]) -> list[float] | None:
    """The times in a cache's entry; None where it is of something else."""
    if entry is None or [candidate[:2] for candidate in entry.candidates] != [[TACTIC, {TACTIC: plan.streams}] for plan in plans]:
        return None
    times = [candidate[2] for candidate in entry.candidates]
    return times if all(isinstance(us, (int, float)) and us > 0 for us in times) else None
