"""memory: what a device has free."""

from __future__ import annotations

import torch

#: How much of what is free may be planned with: allocations are rounded up, and others use the device too.
USABLE = 0.9


def usable_bytes(device: torch.device) -> float:
    """What may be allocated on ``device``: what the driver has free and what PyTorch holds but does not use. Infinite on the CPU."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + held) * USABLE
