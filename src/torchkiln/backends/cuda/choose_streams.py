"""choose_streams: on how many streams a plan is fastest, measured on this GPU or remembered from before."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ...engine.graph_capture import CAPTURING, CaptureFailed, record
from ...errors import BuildFailed
from ...log import REJECTS, STEPS, log
from .driver import load_function
from .plan import Code, Plan, encode_plan
from .recipe import TensorSpec
from .runtime import LoadedPlan
from .timing_cache import Entry, TimingCache, environment, key

#: Less than this share of the time is not worth a second stream.
LEAST_GAIN = 0.01
ROUNDS = 15
#: A plan is replayed for this long between two readings of the clock.
ROUND_US = 2000.0

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
    """Median microseconds of each plan in a CUDA graph, on random inputs; the plans take turns.

    Raises CaptureFailed, what loading raises, and BuildFailed when the plans' results are not the same, bit for bit.
    """
    device = torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
    functions = [load_function(code.blob, code.name, code.threads, code.shared_bytes, code.overlaps, device) for code in codes]
    held = {name: tensor.to(device) for name, tensor in constants.items()}
    generator = torch.Generator(device).manual_seed(0)
    inputs = [_random(spec, generator) for spec in plans[0].inputs]
    graphs = []
    with torch.cuda.device(device), torch.no_grad():
        for plan in plans:
            loaded = LoadedPlan(plan, functions, held, device)
            with CAPTURING:
                # The outputs are kept, as their memory is the graph's.
                graphs.append((loaded, *record(loaded.run, inputs, device, torch.cuda.graph_pool_handle())))
        replays = [max(1, round(ROUND_US / max(_replay_us(graph, 3), 1.0))) for _, graph, _ in graphs]
        times: list[list[float]] = [[] for _ in graphs]
        for _ in range(ROUNDS):
            for place, (_, graph, _) in enumerate(graphs):
                times[place].append(_replay_us(graph, replays[place]))
        first = [output.clone() for output in graphs[0][2]]
        for plan, (_, graph, outputs) in zip(plans, graphs, strict=True):
            graph.replay()
            if not all(torch.equal(_bits(one), _bits(other)) for one, other in zip(first, outputs, strict=True)):
                raise BuildFailed(f"the results on {plan.streams} streams are not those on one")
    return [statistics.median(found) for found in times]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes, so that NaNs are compared too."""
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)


def _replay_us(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / replays


def _random(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    """Numbers for a float tensor, zeros for others: an index must be in its range."""
    if spec.dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator, device=generator.device).to(spec.dtype)
    return torch.zeros(spec.shape, dtype=spec.dtype, device=generator.device)


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
