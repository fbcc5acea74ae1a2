"""A stand-in for the CUDA driver's graph functions, on the CPU: kernels are Python functions of the bytes of their parameters."""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from collections.abc import Callable

import torch

KERNEL, MEMCPY, CHILD_GRAPH = 0, 1, 4


def word(value: torch.Tensor | int, offset: int = 0) -> bytes:
    """An address, or any number, as a kernel's parameter has it."""
    return ((value.data_ptr() if isinstance(value, torch.Tensor) else value) + offset).to_bytes(8, "little")


def at(parameter: bytes, like: torch.Tensor) -> torch.Tensor:
    """The memory a parameter points to, as a contiguous tensor."""
    memory = (ctypes.c_char * (like.numel() * like.itemsize)).from_address(int.from_bytes(parameter[:8], "little"))
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)


class Node:
    def __init__(self, kind: int, run: Callable[..., None], parameters: tuple[bytes, ...]) -> None:
        self.kind, self.run, self.parameters = kind, run, parameters
        self.memory = [ctypes.create_string_buffer(value, len(value)) for value in parameters]
        self.array = (ctypes.c_void_p * len(parameters))(*[ctypes.addressof(value) for value in self.memory])


class FakeDriver:
    """The functions of libcuda that graph_pointers calls. ``counts``: calls of each; ``fail``: the status of setting a node's parameters."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.graphs: dict[int, FakeExec] = {}
        self.counts: Counter[str] = Counter()
        self.fail = 0
        self.handles = itertools.count(1000)

    def cuGraphGetNodes(self, graph, nodes, count):
        handles = list(self.graphs[graph.value].parameters)
        count._obj.value = len(handles)
        if nodes is not None:
            nodes[:] = handles
        return 0

    def cuGraphNodeGetType(self, node, kind):
        kind._obj.value = self.nodes[node.value].kind
        return 0

    def cuGraphKernelNodeGetParams_v2(self, node, params):
        params._obj.function, params._obj.parameters = node.value, ctypes.addressof(self.nodes[node.value].array)
        return 0

    def cuFuncGetParamInfo(self, function, index, offset, size):
        parameters = self.nodes[function.value].parameters
        if index.value >= len(parameters):
            return 1
        size._obj.value = len(parameters[index.value])
        return 0

    def cuGraphMemcpyNodeGetParams(self, node, params):
        data = b"".join(self.nodes[node.value].parameters)
        ctypes.memmove(params._obj, data, len(data))
        return 0

    def cuGraphExecKernelNodeSetParams_v2(self, graph, node, params):
        self.counts["set"] += 1
        if self.fail:
            return self.fail
        sizes = [len(value) for value in self.nodes[node.value].parameters]
        places = (ctypes.c_void_p * len(sizes)).from_address(params._obj.parameters)
        self.graphs[graph.value].parameters[node.value] = [ctypes.string_at(place, size) for place, size in zip(places, sizes, strict=True)]
        return 0


class FakeExec:
    """A captured and instantiated graph of such kernels."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver, self.handle = driver, next(driver.handles)
        self.parameters: dict[int, list[bytes]] = {}
        driver.graphs[self.handle] = self

    def add(self, run: Callable[..., None], *parameters: bytes, kind: int = KERNEL) -> None:
        handle = next(self.driver.handles)
        self.driver.nodes[handle] = Node(kind, run, parameters)
        self.parameters[handle] = list(parameters)

    def instantiate(self) -> None:
        self.driver.counts["instantiate"] += 1
        self.parameters = {handle: list(self.driver.nodes[handle].parameters) for handle in self.parameters}

    def raw_cuda_graph(self) -> int:
        return self.handle

    raw_cuda_graph_exec = raw_cuda_graph

    def replay(self) -> None:
        for handle, parameters in self.parameters.items():
            self.driver.nodes[handle].run(*parameters)
