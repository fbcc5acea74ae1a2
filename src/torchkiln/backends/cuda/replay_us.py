"""replay_us: how long a CUDA graph takes."""

from __future__ import annotations

import torch


def replay_us(graph: torch.cuda.CUDAGraph, replays: int = 1) -> float:
    """Microseconds of a replay on the current stream, by the GPU's clock around ``replays`` of them. Waits for the last."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / replays
