"""A stand-in for torch.cuda's streams, events and graphs, on the CPU: it counts what is asked of it, and a replay runs the call again."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import torch

from torchkiln.engine import cuda_graph, graph_capture, graph_pointers, graph_proof
from torchkiln.engine.cuda_graph import CudaGraphRunner
from torchkiln.engine.graph_pointers import NoPointers

from .fake_driver import FakeDriver, FakeExec, at, word

CPU = torch.device("cpu")


class FakeCuda:
    """``install`` puts it in torch.cuda's place; ``stream`` is the current stream's handle, ``counts`` what was called.

    With ``driver`` a graph is one kernel for each call, which has the addresses of the inputs and of the outputs; without, addresses cannot be had.
    """

    def __init__(self, driver: FakeDriver | None = None) -> None:
        self.driver = driver
        self.stream = 0
        self.device = 0
        self.caller_captures = False
        self.counts: Counter[str] = Counter()
        self.capturing: list[FakeGraph | PointerGraph] = []
        self.storages: list[tuple[int, int]] = []

    def install(self, monkeypatch) -> FakeCuda:
        for name, function in {
            "_cuda_getDevice": lambda: self.device,
            "_cuda_isCurrentStreamCapturing": lambda: self.caller_captures,
            "_cuda_getCurrentRawStream": lambda index: self.stream,
            "_cuda_clearCublasWorkspaces": lambda: self.counts.update(["clear"]),
            "_cuda_endAllocateToPool": lambda index, pool: self.counts.update(["end pool"]),
            "_cuda_releasePool": lambda index, pool: self.counts.update(["release pool"]),
        }.items():
            monkeypatch.setattr(torch._C, name, function, raising=False)
        for name, value in {
            "graph_pool_handle": lambda: (0, 1),
            "Event": lambda: FakeEvent(self),
            "Stream": lambda device: FakeStream(self, 99),
            "current_stream": lambda: FakeStream(self, self.stream),
            "CUDAGraph": lambda keep_graph=False: PointerGraph(self) if keep_graph else FakeGraph(self),
            "graph": self._graph,
            "stream": self._stream,
            "device": self._device,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for module in (cuda_graph, graph_pointers):
            monkeypatch.setattr(module, "library", self._library)
        monkeypatch.setattr(graph_proof, "segment_of", self._segment_of)
        monkeypatch.setattr(graph_capture, "_streams", {})
        monkeypatch.setattr(graph_capture, "_failed", [])
        return self

    def runner(self, function, **options) -> CudaGraphRunner:
        """A CudaGraphRunner of ``function`` (tensors to tensors or numbers) whose tensors are on the CPU."""

        def call(inputs):
            self.counts["call"] += 1
            outputs = list(function(*inputs))
            for graph in self.capturing:
                graph.take(function, inputs, outputs)
            return outputs

        runner = CudaGraphRunner(call, torch.device("cuda", 0), **options)
        runner._device = CPU
        runner._index = 0
        return runner

    def _library(self) -> FakeDriver:
        if self.driver is None:
            raise NoPointers("no driver here")
        return self.driver

    def _segment_of(self, address: int) -> tuple[int, int]:
        """The storage of an output, as if it were all that the allocator had cut from a piece."""
        return next((start, size) for start, size in self.storages if start <= address < start + size)

    @contextmanager
    def _graph(self, graph, pool=None, stream=None, capture_error_mode=""):
        assert stream.handle == 99
        self.capturing.append(graph)
        try:
            yield
        finally:
            self.capturing.pop()

    @contextmanager
    def _stream(self, stream):
        before, self.stream = self.stream, stream.handle
        try:
            yield
        finally:
            self.stream = before

    @contextmanager
    def _device(self, device):
        before, self.device = self.device, 0
        try:
            yield
        finally:
            self.device = before


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.work, self._cuda = [], cuda

    def take(self, function, inputs, outputs) -> None:
        self.work.append((function, inputs, outputs))

    def replay(self) -> None:
        self._cuda.counts["replay"] += 1
        for function, inputs, outputs in self.work:
            for output, value in zip(outputs, function(*inputs), strict=True):
                if isinstance(output, torch.Tensor):
                    output.copy_(value)

    def reset(self) -> None:
        self._cuda.counts["reset"] += 1


class PointerGraph(FakeExec):
    def __init__(self, cuda: FakeCuda) -> None:
        assert cuda.driver is not None
        super().__init__(cuda.driver)
        self._cuda = cuda

    def take(self, function, inputs, outputs) -> None:
        written = [value for value in outputs if isinstance(value, torch.Tensor)]
        self._cuda.storages += [(value.untyped_storage().data_ptr(), value.untyped_storage().nbytes()) for value in written]

        def run(*parameters):
            read = [at(parameter, like) for parameter, like in zip(parameters, inputs, strict=False)]
            results = [value for value in function(*read) if isinstance(value, torch.Tensor)]
            for parameter, like, result in zip(parameters[len(inputs) :], written, results, strict=True):
                at(parameter, like).copy_(result)

        self.add(run, *[word(value) for value in (*inputs, *written)])

    def replay(self) -> None:
        self._cuda.counts["replay"] += 1
        super().replay()

    def reset(self) -> None:
        self._cuda.counts["reset"] += 1


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def record(self, stream) -> None:
        self._cuda.counts[f"record {stream.handle}"] += 1

    def synchronize(self) -> None:
        self._cuda.counts["synchronize"] += 1


class FakeStream:
    def __init__(self, cuda: FakeCuda, handle: int) -> None:
        self._cuda, self.handle = cuda, handle

    def wait_event(self, event) -> None:
        self._cuda.counts[f"wait {self.handle}"] += 1

    def wait_stream(self, stream) -> None: ...

    def synchronize(self) -> None:
        self._cuda.counts["synchronize side"] += 1
