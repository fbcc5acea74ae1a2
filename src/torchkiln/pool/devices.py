"""find_devices: which devices a pool's replicas are on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine.engine import Engine
from ..errors import TargetMismatch, UserError
from ..target import Target

#: Most replicas that "all" puts on a CPU: each needs memory of its own for what it computes, and few models gain from more.
MAX_CPU_REPLICAS = 8


def find_devices(engine: Engine, devices: str | torch.device | Sequence[str | torch.device], num_threads: int) -> list[torch.device]:
    """The device of each replica.

    Args:
        devices: "all": every GPU of this machine the engine was built for; where it has no GPU, the CPU as many times as there are threads, up to
            MAX_CPU_REPLICAS. Or one device, or a list, where the same device may be named more than once. "cuda" alone is the current GPU.
        num_threads: CPU threads to share out.

    Raises UserError for something that is no device, TargetMismatch for a device this machine has not and where "all" finds nothing.
    """
    if isinstance(devices, str) and devices == "all":
        return _all_devices(engine, num_threads)
    wanted = [devices] if isinstance(devices, (str, torch.device)) else devices
    if not isinstance(wanted, Sequence) or not wanted:
        raise UserError(f"replicate: devices: expected 'all', a device or a list of devices, as ['cuda:0', 'cuda:1'], got {devices!r}")
    return [parse_device(name, "replicate: devices") for name in wanted]


def _all_devices(engine: Engine, num_threads: int) -> list[torch.device]:
    from ..engine.choose_target import choose_target

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return [torch.device("cpu")] * min(num_threads, MAX_CPU_REPLICAS)
    found, problems = [], []
    for index in range(count):
        device = torch.device("cuda", index)
        try:
            choose_target(engine.held, device)
        except TargetMismatch as error:
            problems.append(f"{device} ({Target.of(device)}): {error}")
        else:
            found.append(device)
    if not found:
        raise TargetMismatch(f"replicate: devices='all': no GPU of this machine runs the engine; name what does, as devices='cpu'. {problems[0]}")
    return found


def parse_device(name: str | torch.device, where: str) -> torch.device:
    """The device, with its index on a GPU and without one on the CPU. Raises UserError, which begins with ``where``."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{where}: expected a torch device as 'cpu' or 'cuda:0', got {name!r}: {error}") from None
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device.type) if device.type == "cpu" else device
