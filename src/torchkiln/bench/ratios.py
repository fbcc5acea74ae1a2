"""Which rows to set beside each other, and by what factor they differ. All on rows of one group (model, shape, device)."""

from __future__ import annotations

from collections.abc import Sequence

from .result import ENGINE_RUNNER, Row


def sorted_rows(rows: Sequence[Row]) -> list[Row]:
    """Measured rows by median, then the others in the order they were tried."""
    return sorted(rows, key=lambda row: row.median_ms)


def best_row(rows: Sequence[Row]) -> Row | None:
    """The fastest row that was measured and is as accurate as its precision allows."""
    good = [row for row in rows if row.latency_ms is not None and row.within_tolerance is not False]
    return min(good, key=lambda row: row.median_ms, default=None)


def best_peer(rows: Sequence[Row], precision: str | None = None) -> Row | None:
    """The fastest measured peer, at ``precision`` or at any, accurate or not: nobody shall say a peer was ruled out on a technicality."""
    peers = [row for row in rows if row.runner != ENGINE_RUNNER and row.latency_ms is not None and precision in (None, row.precision)]
    return min(peers, key=lambda row: row.median_ms, default=None)


def find_row(rows: Sequence[Row], runner: str, precision: str) -> Row | None:
    """The measured row of that runner and precision."""
    return next((row for row in rows if row.runner == runner and row.precision == precision and row.latency_ms is not None), None)


def engine_rows(rows: Sequence[Row]) -> list[Row]:
    """The engine's measured rows, in the order asked."""
    return [row for row in rows if row.runner == ENGINE_RUNNER and row.latency_ms is not None]


def best_engine(rows: Sequence[Row]) -> Row | None:
    """The engine's fastest measured row that is as accurate as its precision allows."""
    return best_row(engine_rows(rows))


def speed_up(slower: Row | None, faster: Row | None) -> float | None:
    """How many times faster the second is, by medians; None when one of the two was not measured."""
    if slower is None or faster is None or slower.latency_ms is None or faster.latency_ms is None:
        return None
    return slower.median_ms / faster.median_ms
