"""threads: a pool's own threads, with a number of PyTorch threads of their own on the CPU."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

_starting = threading.Lock()


def make_threads(count: int, num_threads: int | None) -> ThreadPoolExecutor:
    """``count`` threads in which PyTorch uses ``num_threads`` threads (None: as many as anywhere); in all others it uses as many as before."""
    start = partial(_start, num_threads) if num_threads is not None else None
    return ThreadPoolExecutor(count, "torchkiln-replica", initializer=start)


def _start(num_threads: int) -> None:
    with _starting:
        before = torch.get_num_threads()
        # PyTorch keeps the number for each thread that has used it, and the last one set, by whichever thread, for all that come.
        torch.set_num_threads(num_threads)
        again = threading.Thread(target=torch.set_num_threads, args=(before,))
        again.start()
        again.join()
