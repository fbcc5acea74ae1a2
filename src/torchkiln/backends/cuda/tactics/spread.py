"""spread: configurations in an order that tries different ones early."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..recipe import Config


def spread(ranked: list[Config], names: tuple[str, ...], places: int) -> list[Config]:
    """The same, best guess first, but each further one with the same values of ``names`` comes ``places`` later: the guess tells those values apart
    better than what else varies."""
    seen: Counter[tuple[Any, ...]] = Counter()
    keyed: list[tuple[int, int, Config]] = []
    for rank, config in enumerate(ranked):
        kind = tuple(config[name] for name in names)
        keyed.append((rank + places * seen[kind], rank, config))
        seen[kind] += 1
    return [config for _, _, config in sorted(keyed, key=lambda entry: entry[:2])]
