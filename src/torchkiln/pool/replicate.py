"""replicate: an engine on every GPU, or several times on the CPU, behind one callable."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine.engine import Engine
from ..errors import TargetMismatch, UserError
from .devices import find_devices
from .load_replicas import load_replicas
from .pool import Pool


def replicate(
    engine: Engine,
    devices: str | torch.device | Sequence[str | torch.device] = "all",
    *,
    output_device: torch.device | str | None = None,
    num_threads: int | None = None,
) -> Pool:
    """Load ``engine`` once for each device: a Pool that is called as the engine is, by several threads at once, or over a DataLoader by ``map``.

        with torchkiln.replicate(engine) as pool:
            for labels in pool.map(loader, lambda batch: batch["image"]):
                ...

    Args:
        engine: what to replicate. It is not one of the replicas: where its memory counts, drop it.
        devices: "all": every GPU of this machine that the engine was built for; where there is no GPU, up to eight replicas that share the CPU's
            threads. Or a list, where a device may be named more than once: ``["cuda:0", "cuda:1"]``, ``["cpu"] * 4``.
        output_device: where results go; default: to the device of the call's first tensor. "replica": they stay where they were computed.
        num_threads: CPU threads that the replicas on the CPU share; default: those of the engine.

    Raises UserError for devices that are none, TargetMismatch where the engine holds nothing for one, and what loading an engine raises.
    """
    if not isinstance(engine, Engine):
        raise UserError(f"replicate: expected a torchkiln.Engine, got {type(engine).__name__}: build one with torchkiln.compile")
    if num_threads is not None and (not isinstance(num_threads, int) or num_threads < 1):
        raise UserError(f"replicate: num_threads: expected a whole number from 1, got {num_threads!r}")
    target = output_device if output_device is None or output_device == "replica" else _parse(output_device)
    if not engine.runs_here and devices == "all":
        raise TargetMismatch(engine.target_note)
    threads = num_threads or engine._num_threads or torch.get_num_threads()
    where = find_devices(engine, devices, threads)
    on_cpu = sum(device.type == "cpu" for device in where)
    return Pool(load_replicas(engine, where, threads), target, max(1, threads // on_cpu) if on_cpu else None)


def _parse(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"replicate: output_device: expected a torch device or 'replica', got {device!r}: {error}") from None
