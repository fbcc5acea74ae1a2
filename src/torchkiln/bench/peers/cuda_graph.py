"""Eager PyTorch recorded into one CUDA graph: no launch overhead, the same kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..case import Case
from .contract import Refusal, Runner
from .eager import Eager, EagerChannelsLast, refuse_without_images

_WARM_UP_CALLS = 3


@dataclass(frozen=True)
class CudaGraph:
    """The calls of ``eager`` (or, with ``layout``, of ``eager-channels-last``) as one graph replay."""

    name: str
    layout: bool
    slow_build: bool = False

    def refuse(self, case: Case, precision: torch.dtype) -> Refusal | None:
        if case.device.type != "cuda":
            return Refusal("skipped", f"CUDA graphs need a CUDA device, this benchmark runs on {case.device.type}")
        return refuse_without_images(case) if self.layout else None

    def build(self, case: Case, precision: torch.dtype) -> Runner:
        eager = (EagerChannelsLast() if self.layout else Eager()).build(case, precision)
        static = tuple(t.clone() for t in eager.input_sets[0])
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode():
            # cuDNN and cuBLAS choose kernels and take workspaces at the first calls, which a capture does not allow.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_CALLS):
                    eager.call(*static)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                outputs = eager.call(*static)

        def replay(*inputs: torch.Tensor, model: Runner = eager) -> Any:
            # ``model`` keeps the weights alive: the graph reads their memory, but does not own it.
            for place, value in zip(static, inputs, strict=True):
                if place is not value:
                    place.copy_(value)
            graph.replay()
            return outputs

        # With one input set the inputs already lie where the graph reads them: no copy, the best case of this peer.
        input_sets = [static] if len(eager.input_sets) == 1 else eager.input_sets
        return Runner(replay, input_sets, options="one graph, static inputs")


CUDA_GRAPH = CudaGraph("cuda-graph", layout=False)
CUDA_GRAPH_CHANNELS_LAST = CudaGraph("cuda-graph-channels-last", layout=True)
