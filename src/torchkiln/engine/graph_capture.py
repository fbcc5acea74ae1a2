"""graph_capture: record one call as a CUDA graph, and put torch back in order where that fails.

Source: the CUDA graphs section of PyTorch's CUDA notes (warm-up on a side stream, capture). torch allows one capture at a time in a process.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..backends.contract import Runner

#: Before capture, so that nothing is loaded, tuned or allocated for the first time during it.
WARM_UP_CALLS = 3

#: Held by the thread that captures. Reentrant: what is warmed up may hold an engine of its own. Taken before a CudaGraphRunner's lock, never after.
CAPTURING = threading.RLock()

#: One stream per device for all warm-ups and captures. The allocator keeps memory apart by stream: with a stream for each engine, what the warm-up of
#: one leaves could not serve the next, and a pool's graphs could not share its memory.
_streams: dict[torch.device, torch.cuda.Stream] = {}

#: torch's allocator of pinned memory keeps a pointer to a graph whose capture failed.
_failed: list[torch.cuda.CUDAGraph] = []


class CaptureFailed(Exception):
    """The call ran, but could not be captured; the message says why."""


def record(
    call: Runner, inputs: Sequence[torch.Tensor], device: torch.device, pool: Any, *, keep_graph: bool = False
) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """A graph of ``call(inputs)`` and the outputs it writes; the caller holds CAPTURING.

    What runs on the current stream afterwards comes after the warm-up. Raises CaptureFailed, and what ``call`` itself raises in warm-up.

    Args:
        inputs: read by every replay: keep them.
        pool: a handle of torch.cuda.graph_pool_handle; graphs with the same one must not run at the same time.
        keep_graph: keep what was captured besides what is replayed, so that its nodes can be looked at.
    """
    caller, side = torch.cuda.current_stream(), side_stream(device)
    side.wait_stream(caller)
    try:
        warm_up(call, inputs, side)
        side.synchronize()
        try:
            return _capture(call, inputs, device, pool, side, keep_graph)
        except RuntimeError as error:
            # Not a fault of the model: it ran, in warm-up. It does something a graph cannot hold, or memory is short.
            raise CaptureFailed((str(error).strip() or type(error).__name__).splitlines()[0]) from error
    finally:
        caller.wait_stream(side)


def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all warm-ups and captures on ``device``."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def warm_up(call: Runner, inputs: Sequence[torch.Tensor], side: torch.cuda.Stream) -> None:
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            call(inputs)


def _capture(
    call: Runner, inputs: Sequence[torch.Tensor], device: torch.device, pool: Any, side: torch.cuda.Stream, keep_graph: bool
) -> tuple[Any, list[Any]]:
    graph = torch.cuda.CUDAGraph(keep_graph=True) if keep_graph else torch.cuda.CUDAGraph()
    # cuBLAS keeps a workspace per stream. Cleared, it is allocated during capture, in this pool, and not shared with another engine's graph, which
    # may run at the same time.
    torch._C._cuda_clearCublasWorkspaces()
    try:
        # The outer context puts the caller's stream back also where the inner one fails on its way in.
        # thread_local: what other threads do with the GPU meanwhile does not spoil the capture.
        with torch.cuda.stream(side), torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            outputs = list(call(inputs))
        if keep_graph:
            graph.instantiate()
    except BaseException:
        _clean_up(graph, device, pool, side)
        raise
    finally:
        torch._C._cuda_clearCublasWorkspaces()
    for index, output in enumerate(outputs):
        if isinstance(output, torch.Tensor) and output.device != device:
            raise RuntimeError(f"output {index} is on {output.device}, which a graph of {device} does not write")
    return graph, outputs


def _clean_up(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any, side: torch.cuda.Stream) -> None:
    """Undo what CUDAGraph.capture_end leaves behind where it throws.

    torch's allocator then still takes the capture for under way: from there on torch.cuda.empty_cache frees nothing, memory in use on several
    streams is never reused, and the pool is kept for good. The random number generator may refuse to work outside a capture.
    """
    with suppress(RuntimeError):  # it says so where the capture had ended for the allocator; then the graph releases the pool itself
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    _failed.append(graph)
    with suppress(RuntimeError):
        graph.reset()
    with suppress(RuntimeError), torch.cuda.stream(side):
        # A capture that ends well resets the generator.
        value = torch.zeros(1, device=device)
        side.synchronize()
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side, capture_error_mode="thread_local"):
            value.zero_()
