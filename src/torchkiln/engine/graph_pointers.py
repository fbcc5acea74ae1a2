"""graph_pointers: find where a captured CUDA graph's kernels hold the address of a buffer, and write other addresses there before a replay.

Source: the CUDA driver API reference, graph management (cuGraphKernelNodeGetParams, cuGraphExecKernelNodeSetParams, cuFuncGetParamInfo). Setting a
node's parameters leaves its attributes and its edges, programmatic ones too, as they are, and concerns later launches alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache, partial
from typing import Any

import torch

#: CUgraphNodeType.
_KERNEL, _MEMCPY, _MEMSET, _CHILD_GRAPH, _CONDITIONAL = 0, 1, 2, 4, 13
_WORD_BYTES = 8
#: More than CUDA_MEMCPY3D and CUDA_MEMSET_NODE_PARAMS have.
_COPY_PARAMS_BYTES = 512
#: Each node costs the CPU about a microsecond a call: a buffer that more nodes read is copied.
MOST_NODES = 6

_ENTRY_POINTS = (
    "cuGraphGetNodes",
    "cuGraphNodeGetType",
    "cuGraphKernelNodeGetParams_v2",
    "cuGraphExecKernelNodeSetParams_v2",
    "cuGraphMemcpyNodeGetParams",
    "cuGraphMemsetNodeGetParams",
    "cuFuncGetParamInfo",
    "cuKernelGetParamInfo",
)


class NoPointers(Exception):
    """The graph's pointers cannot be read or written; the message says why."""


class KernelParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = [
        ("function", c_void_p),
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("parameters", c_void_p),
        ("extra", c_void_p),
        ("kernel", c_void_p),
        ("context", c_void_p),
    ]


@cache
def library() -> Any:
    """The CUDA driver's library. Raises NoPointers where it, one of its functions, or torch's handles of a graph are missing."""
    try:
        found = ctypes.CDLL("libcuda.so.1")
        missing = [name for name in _ENTRY_POINTS if not hasattr(found, name)]
    except OSError as error:
        raise NoPointers(f"libcuda.so.1 cannot be loaded: {error}") from error
    missing += [name for name in ("raw_cuda_graph", "raw_cuda_graph_exec", "instantiate") if not hasattr(torch.cuda.CUDAGraph, name)]
    if missing:
        raise NoPointers(f"{', '.join(missing)}: not in this version of torch or of the NVIDIA driver")
    return found


def words_within(data: bytes, buffers: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """The aligned words of ``data`` that are addresses within one of ``buffers`` (address, bytes): (byte in data, buffer, offset in the buffer)."""
    found = []
    for place in range(0, len(data) - _WORD_BYTES + 1, _WORD_BYTES):
        word = int.from_bytes(data[place : place + _WORD_BYTES], "little")
        found += [(place, index, word - start) for index, (start, size) in enumerate(buffers) if start <= word < start + size]
    return found


class GraphPointers:
    """The addresses of some buffers in an instantiated graph. Not for several threads at once.

    Attributes:
        problems: for each buffer, why its address cannot be changed as far as the graph's nodes show; "" where it can.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, buffers: Sequence[tuple[int, int]]) -> None:
        """Raises NoPointers where the nodes cannot be read.

        Args:
            graph: captured with keep_graph, instantiated; it must outlive this.
            buffers: address and bytes of each; none overlaps another.
        """
        self._driver = library()
        self._exec = graph.raw_cuda_graph_exec()
        #: For each buffer, the words that hold it, with their offsets, and what hands their nodes' parameters to the graph.
        self._words: list[list[tuple[c_uint64, int]]] = [[] for _ in buffers]
        self._setters: list[list[Callable[[], int]]] = [[] for _ in buffers]
        self.problems = [""] * len(buffers)
        self._held: list[Any] = []
        self._bound = [start for start, _ in buffers]
        for node in self._nodes(graph.raw_cuda_graph()):
            self._read_node(node, buffers)
        for index, setters in enumerate(self._setters):
            if not setters:
                self.problems[index] = self.problems[index] or "no kernel has its address"
            elif len(setters) > MOST_NODES:
                self.problems[index] = self.problems[index] or f"{len(setters)} kernels have its address"

    def bind(self, addresses: list[int]) -> None:
        """From the next launch on, the buffers are at ``addresses``, one for each. Raises NoPointers, and then only some may be."""
        bound = self._bound
        if addresses == bound:
            return
        setters: list[Callable[[], int]] = []
        for index, address in enumerate(addresses):
            if address != bound[index]:
                for word, offset in self._words[index]:
                    word.value = address + offset
                setters += self._setters[index]
        self._bound = addresses.copy()
        for setter in dict.fromkeys(setters):
            if setter():
                # A thread that has not used CUDA yet has no context: asking anything of the runtime makes one.
                if torch.cuda.is_available():
                    torch.cuda.current_stream().query()
                if status := setter():
                    raise NoPointers(f"cuGraphExecKernelNodeSetParams: error {status}")

    def _nodes(self, graph: int) -> list[int]:
        count = c_size_t()
        self._check(self._driver.cuGraphGetNodes(c_void_p(graph), None, ctypes.byref(count)), "cuGraphGetNodes")
        nodes = (c_void_p * count.value)()
        self._check(self._driver.cuGraphGetNodes(c_void_p(graph), nodes, ctypes.byref(count)), "cuGraphGetNodes")
        return [node for node in nodes if node is not None]

    def _read_node(self, node: int, buffers: Sequence[tuple[int, int]]) -> None:
        kind = c_int()
        self._check(self._driver.cuGraphNodeGetType(c_void_p(node), ctypes.byref(kind)), "cuGraphNodeGetType")
        if kind.value == _KERNEL:
            self._read_kernel(node, buffers)
        elif kind.value in (_MEMCPY, _MEMSET):
            read = self._driver.cuGraphMemcpyNodeGetParams if kind.value == _MEMCPY else self._driver.cuGraphMemsetNodeGetParams
            params = (c_uint64 * (_COPY_PARAMS_BYTES // _WORD_BYTES))()
            self._check(read(c_void_p(node), ctypes.byref(params)), "parameters of a copy")
            for _, index, _ in words_within(bytes(params), buffers):
                self.problems[index] = "copied or filled by no kernel"
        elif kind.value in (_CHILD_GRAPH, _CONDITIONAL):
            raise NoPointers("it holds graphs of its own")

    def _read_kernel(self, node: int, buffers: Sequence[tuple[int, int]]) -> None:
        params = KernelParams()
        self._check(self._driver.cuGraphKernelNodeGetParams_v2(c_void_p(node), ctypes.byref(params)), "cuGraphKernelNodeGetParams")
        if not params.parameters:
            return  # none, or in a form that is not read: what it does to a buffer, a trial of the graph shows
        sizes = self._sizes(params)
        theirs = (c_void_p * len(sizes)).from_address(params.parameters)
        values = [ctypes.create_string_buffer(ctypes.string_at(place, size), size) for place, size in zip(theirs, sizes, strict=True) if place]
        if len(values) != len(sizes):
            raise NoPointers("a kernel's parameters have no place")
        found = [(value, *word) for value in values for word in words_within(value.raw, buffers)]
        if not found:
            return
        array = (c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        params.parameters, params.extra = ctypes.addressof(array), None
        setter = partial(self._driver.cuGraphExecKernelNodeSetParams_v2, c_void_p(self._exec), c_void_p(node), ctypes.byref(params))
        for value, place, index, offset in found:
            self._words[index].append((c_uint64.from_buffer(value, place), offset))
            if setter not in self._setters[index]:
                self._setters[index].append(setter)
        self._held += [array, values]

    def _sizes(self, params: KernelParams) -> list[int]:
        """Bytes of each of a kernel's parameters."""
        ask = self._driver.cuFuncGetParamInfo if params.function else self._driver.cuKernelGetParamInfo
        handle, offset, size = c_void_p(params.function or params.kernel), c_size_t(), c_size_t()
        sizes: list[int] = []
        while ask(handle, c_size_t(len(sizes)), ctypes.byref(offset), ctypes.byref(size)) == 0:
            sizes.append(size.value)
        return sizes

    @staticmethod
    def _check(status: int, what: str) -> None:
        if status:
            raise NoPointers(f"{what}: error {status}")
