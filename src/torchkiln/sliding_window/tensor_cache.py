"""TensorCache: the tensors last used, up to a number and a size in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch


class TensorCache:
    """Safe under calls from several threads. What it gives is shared: nobody writes to it."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._max_count, self._max_bytes = max_count, max_bytes
        self._held: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor of that key, computed where it is not held. One larger than the whole cache is not kept; the least lately used go first."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
                return _for_this_stream(found)
        tensor = compute()
        if tensor.is_cuda:
            # Other streams may use it as soon as it is held. Once for each map, not for each call.
            torch.cuda.current_stream(tensor.device).synchronize()
        size = tensor.nbytes
        if size <= self._max_bytes:
            with self._lock:
                if key not in self._held:
                    self._held[key] = tensor
                    self._bytes += size
                while len(self._held) > self._max_count or self._bytes > self._max_bytes:
                    _, old = self._held.popitem(last=False)
                    self._bytes -= old.nbytes
        return tensor

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._held)


def _for_this_stream(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor
