"""load_replicas: an engine's contents, loaded once for each device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..backends.registry import get_backend
from ..engine.choose_target import choose_target
from ..engine.engine import Engine
from ..log import SUMMARY, log

if TYPE_CHECKING:
    from ..backends.contract import Runner
    from ..engine.contents import EngineSegment


def load_replicas(engine: Engine, devices: Sequence[torch.device], num_threads: int) -> list[Engine]:
    """An engine for each of ``devices``, in order. None of them is ``engine`` itself, so that nobody else calls them.

    Those on the CPU share ``num_threads`` threads evenly, one at least for each. They share weights as far as the backend's library does. Raises
    what loading an engine raises.
    """
    on_cpu = [device for device in devices if device.type == "cpu"]
    cpu_engines = iter(_load_cpu_replicas(engine, len(on_cpu), num_threads) if on_cpu else [])
    engines = [next(cpu_engines) if device.type == "cpu" else Engine(engine.held, device=device) for device in devices]
    log(SUMMARY, "replicas: %s", ", ".join(map(str, devices)))
    return engines


def _load_cpu_replicas(engine: Engine, count: int, num_threads: int) -> list[Engine]:
    choice = choose_target(engine.held, "cpu")
    shared = [_load_shared(segment, num_threads, count) for segment in choice.contents.segments]
    share = max(1, num_threads // count)
    replicas = []
    for _ in range(count):
        runners = [
            # PyTorch's own segments take the number of threads from the thread they run in: the pool's threads have it.
            runner or get_backend(segment.backend).load(segment.artifact, choice.device, share if segment.backend != "torch" else None)
            for runner, segment in zip(shared, choice.contents.segments, strict=True)
        ]
        replicas.append(Engine(choice.contents, choice.device, share, runners=runners))
    return replicas


def _load_shared(segment: EngineSegment, num_threads: int, count: int) -> Runner | None:
    """One runner for all replicas, where the backend's library runs several calls side by side by itself; None where each needs its own."""
    if segment.backend != "openvino" or count == 1:
        return None
    from ..backends.openvino.streams import load_streams

    return load_streams(segment.artifact, max(num_threads, count), count)
