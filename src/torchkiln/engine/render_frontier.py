"""render_frontier: a Frontier as tables for a terminal."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from .frontier import Frontier

#: Layers that are shown: those that are not in the narrowest precision come first.
MOST_LAYERS = 40


def render_frontier(frontier: Frontier) -> list[Table | str]:
    """The engines by time, the layers with their errors and times, and what builds the engine again."""
    shown: list[Table | str] = [_points(frontier)]
    if any(layer.error for layer in frontier.layers):
        shown.append(_layers(frontier))
    parts = [f"backend={point.name.partition(' ')[0]!r}" for point in frontier.points if point.is_kept]
    parts += [f"enabled_precisions={{{', '.join(map(repr, frontier.enabled_precisions))}}}"]
    parts += [f"keep_float32={{{', '.join(map(repr, frontier.keep_float32))}}}"] if frontier.keep_float32 else []
    parts += [f"QuantizeOptions(skip=({', '.join(map(repr, frontier.skip))},))"] if frontier.skip else []
    return [*shown, f"the same without a search: {', '.join(parts)}"]


def _points(frontier: Frontier) -> Table:
    has_accuracy = any(point.accuracy is not None for point in frontier.points)
    columns = ["engine", "layers", "median ms", "relative error", *(["accuracy"] if has_accuracy else []), ""]
    table = _table(f"precision search, {frontier.budget} {frontier.limit:g}", columns, left=("engine", "layers", ""))
    for point in sorted(frontier.points, key=lambda point: point.median_ms):
        notes = [text for text, holds in (("kept", point.is_kept), ("outside", not point.within), ("frontier", point.is_best)) if holds]
        accuracy = [f"{point.accuracy:.6g}" if point.accuracy is not None else "-"] if has_accuracy else []
        layers = ", ".join(f"{count} {name}" for name, count in point.layers.items())
        _row(table, point.name, layers, f"{point.median_ms:.3f}", _error(point.relative_error), *accuracy, ", ".join(notes))
    return table


def _layers(frontier: Frontier) -> Table:
    precisions = list(dict.fromkeys(name for layer in frontier.layers for name in layer.error))
    times = list(dict.fromkeys(name for layer in frontier.layers for name in layer.time_us))
    columns = ["layer", "operators", "precision", *(f"error {name}" for name in precisions), *(f"us {name}" for name in times)]
    narrowest = precisions[0] if precisions else ""
    layers = sorted(frontier.layers, key=lambda layer: layer.precision == narrowest)[:MOST_LAYERS]
    more = f", {len(layers)} of {len(frontier.layers)}" if len(layers) < len(frontier.layers) else ""
    table = _table(f"layers{more}: error with only this one narrow; times: {frontier.times_from}", columns, left=("layer", "precision"))
    for layer in layers:
        errors = [_error(layer.error[name]) if name in layer.error else "-" for name in precisions]
        took = [f"{layer.time_us[name]:.0f}" if name in layer.time_us else "-" for name in times]
        _row(table, layer.name, str(layer.operators), layer.precision, *errors, *took)
    return table


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if math.isfinite(value) else "not finite"


def _table(title: str, columns: list[str], left: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="", expand=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))
