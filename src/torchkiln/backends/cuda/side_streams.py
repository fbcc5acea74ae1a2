"""side_streams: the streams that a plan uses beside its caller's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_free: dict[torch.device, list[torch.cuda.Stream]] = {}
_capturing: dict[torch.device, list[torch.cuda.Stream]] = {}


@contextmanager
def side_streams(device: torch.device, count: int) -> Iterator[list[torch.cuda.Stream]]:
    """``count`` streams of ``device`` that no other run of a plan launches on within the block. What runs on them must have joined the caller's
    stream by its end.

    They come from torch's pool of 32 a device, from which programs with very many streams of their own are given the same again: work of theirs is
    then in order with this, and must not be launched while a graph is captured (as always while one captures).

    Captures have streams of their own (torch allows one capture at a time): a stream that joined a capture belongs to it until the capture ends,
    which is after the block, and what others launched on it would become a part of the graph.
    """
    if not count:
        yield []
        return
    if torch.cuda.is_current_stream_capturing():
        with _lock:
            held = _capturing.setdefault(device, [])
            held += [torch.cuda.Stream(device) for _ in range(count - len(held))]
        yield held[:count]
        return
    with _lock:
        free = _free.setdefault(device, [])
        taken = [free.pop() if free else torch.cuda.Stream(device) for _ in range(count)]
    try:
        yield taken
    finally:
        with _lock:
            free.extend(taken)
