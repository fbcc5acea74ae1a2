"""map_in_order: calls made ahead of their turn, results in the order of their inputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from ..progress import progress

T = TypeVar("T")


def map_in_order(batches: Iterable[T], start: Callable[[int, T], Future[Any]], look_ahead: int) -> Iterator[tuple[T, Any]]:
    """Each batch with its result. At most ``look_ahead`` calls are started before the first of them is waited for.

    Args:
        start: given a batch's number and the batch, starts its call.

    When a call fails, or the caller stops, calls that have not begun are dropped and those that have are waited for.
    """
    total = _length(batches)
    pending: deque[tuple[T, Future[Any]]] = deque()
    done = 0
    progress("batches", done, total)
    try:
        for number, batch in enumerate(batches):
            pending.append((batch, start(number, batch)))
            if len(pending) >= look_ahead:
                first, future = pending.popleft()
                result = future.result()
                done += 1
                progress("batches", done, total)
                yield first, result
        while pending:
            first, future = pending.popleft()
            result = future.result()
            done += 1
            progress("batches", done, total)
            yield first, result
    finally:
        for _, future in pending:
            future.cancel()
        for _, future in pending:
            if not future.cancelled():
                future.exception()


def _length(batches: Iterable[Any]) -> int:
    """0 where it is not known. A DataLoader always has ``__len__``, which raises where its dataset is a stream."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 0
