"""check_points: at which shapes an engine is checked."""

from __future__ import annotations

from collections.abc import Sequence

from ..inputs import Input, Shape


def check_points(inputs: Sequence[Input]) -> list[tuple[str, list[Shape]]]:
    """Named shape sets: opt, and for dynamic inputs min and max too (each once)."""
    points = [("opt", [i.opt_shape for i in inputs])]
    if any(i.is_dynamic for i in inputs):
        points += [("min", [i.min_shape for i in inputs]), ("max", [i.max_shape for i in inputs])]
    unique: dict[tuple[Shape, ...], tuple[str, list[Shape]]] = {}
    for name, shapes in points:
        unique.setdefault(tuple(shapes), (name, shapes))
    return list(unique.values())
