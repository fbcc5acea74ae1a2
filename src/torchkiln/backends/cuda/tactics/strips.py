"""strips: how programs share an output that each walks in strips of rows, down the image, with a few rows in front of a strip's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Strips:
    """All strips of an output, and the programs that are resident at once.

    Attributes:
        height: rows of the output.
        across: strips side by side, of all images.
        columns: tiles of output channels: each has programs of its own, which walk all strips.
        slots: programs that the GPU holds.
        extra: steps that a strip takes beside one for each of its rows.
    """

    height: int
    across: int
    columns: int
    slots: int
    extra: int

    def count(self, rows: int) -> int:
        """Strips of ``rows`` rows."""
        return self.across * -(-self.height // rows)

    def programs(self, rows: int) -> int:
        """Programs for each tile of output channels: all of the grid run at once."""
        return min(self.count(rows), max(1, self.slots // self.columns))

    def steps(self, rows: int) -> int:
        """Steps of the program that has most, or of several where there are more tiles of output channels than slots."""
        programs = self.programs(rows)
        rounds = -(-programs * self.columns // self.slots)
        return rounds * -(-self.count(rows) // programs) * (rows + self.extra)


@lru_cache(maxsize=4096)
def best_rows(strips: Strips) -> tuple[int, ...]:
    """The two heights of strips with which the programs end soonest, in rows; the taller first where both do."""
    heights = sorted({-(-strips.height // parts) for parts in range(1, strips.height + 1)}, reverse=True)
    return tuple(sorted(heights, key=strips.steps)[:2])
