"""time_steps: how long each step of a loaded plan takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from .replay_us import replay_us
from .runtime import LoadedPlan, own_flags

#: A step is captured this often into one graph.
LAUNCHES = 20


def time_steps(loaded: LoadedPlan, inputs: Sequence[torch.Tensor], repeats: int) -> list[float]:
    """Median microseconds of each step, captured many times in a row into a CUDA graph of its own (so its data may lie in the L2 cache)."""
    memory = loaded.start(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    found = []
    with torch.cuda.stream(stream), own_flags() as set_math:
        for step in loaded.plan.steps:
            set_math(loaded.plan.infos[step.info].math)
            launch = loaded.launcher(step, memory)
            before = memory._arena.clone()  # a step in place changes what it reads, a position or an index among that
            launch(stream.cuda_stream)  # what torch allocates is there from here on, for the steps after
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(LAUNCHES):
                    launch(stream.cuda_stream)
            graph.replay()
            found.append(statistics.median(replay_us(graph) / LAUNCHES for _ in range(repeats)))
            memory._arena.copy_(before)
            launch(stream.cuda_stream)  # outside the graph's memory, which goes with the graph
            stream.synchronize()
    return found
