"""draw_charts: latency by runner, and latency by resolution, as PNG files."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingPackage
from .ratios import sorted_rows
from .result import ENGINE_RUNNER, BenchmarkResult, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ENGINE_COLOR = "#c2410c"
_PEER_COLOR = "#64748b"
_DPI = 130


def draw_charts(result: BenchmarkResult, directory: Path) -> list[Path]:
    """Draw into an existing ``directory`` and return the PNG files: one a model and shape, one more for each model measured at several shapes.

    Groups without a measured row have no chart. Raises MissingPackage without matplotlib.
    """
    files = []
    by_model: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for (model, shape, device), rows in result.groups().items():
        measured = [row for row in sorted_rows(rows) if row.latency_ms is not None]
        if measured:
            by_model.setdefault((model, device), {})[shape] = measured
    for (model, device), shapes in by_model.items():
        for shape, rows in shapes.items():
            files.append(_save(latency_chart(f"{model}  {shape}  {device}", rows), directory, f"latency-{model}-{shape}-{device}"))
        if len(shapes) > 1:
            files.append(_save(shape_chart(f"{model}  {device}", shapes), directory, f"shapes-{model}-{device}"))
    return files


def latency_chart(title: str, rows: list[Row]) -> Figure:
    """One bar a runner, fastest on top: the median, with a line from the minimum to the 90th percentile."""
    figure = _new_figure(8, 1.2 + 0.32 * len(rows))
    axes = figure.subplots()
    # The medians set the scale: one disturbed runner's long line must not make all bars invisible. The table has its figure.
    limit = 1.25 * max(row.median_ms for row in rows)
    for place, row in enumerate(rows):
        latency = row.latency_ms
        assert latency is not None  # callers pass measured rows
        axes.barh(place, latency.median, color=_ENGINE_COLOR if row.runner == ENGINE_RUNNER else _PEER_COLOR)
        axes.plot([latency.min, latency.p90], [place, place], color="black", linewidth=1)
        axes.text(min(max(latency.median, latency.p90), limit), place, f"  {latency.median:.3g}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row.runner} {row.precision}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, limit)
    axes.set_xlabel("latency of one call, ms (bar: median; line: minimum to 90th percentile)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def shape_chart(title: str, shapes: dict[str, list[Row]]) -> Figure:
    """Grouped bars: a group a shape, a bar a runner and precision, on a logarithmic scale."""
    runners = list(dict.fromkeys((row.runner, row.precision) for rows in shapes.values() for row in rows))
    figure = _new_figure(max(7.0, 1.5 + 0.22 * len(runners) * len(shapes)), 5)
    axes = figure.subplots()
    width = 0.85 / len(runners)
    colors = _colors(len(runners))
    for index, (runner, precision) in enumerate(runners):
        points = [
            (place, row.median_ms) for place, rows in enumerate(shapes.values()) for row in rows if (row.runner, row.precision) == (runner, precision)
        ]
        offset = (index - (len(runners) - 1) / 2) * width
        places, medians = [place + offset for place, _ in points], [median for _, median in points]
        edge: dict[str, Any] = {"edgecolor": "black", "linewidth": 1.2} if runner == ENGINE_RUNNER else {}
        axes.bar(places, medians, width, label=f"{runner} {precision}", color=colors[index], **edge)
    axes.set_xticks(range(len(shapes)), list(shapes), fontsize=9)
    axes.set_yscale("log")
    axes.set_ylabel("median latency of one call, ms")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def require_matplotlib() -> None:
    """Raises MissingPackage without matplotlib."""
    if find_spec("matplotlib") is None:
        raise MissingPackage('charts need matplotlib, which is not installed: pip install "torchkiln[report]"')


def _new_figure(width: float, height: float) -> Figure:
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, no display, no change of the caller's backend.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _colors(count: int) -> list[Any]:
    from matplotlib import colormaps

    palette = colormaps["tab20"]
    return [palette(index % 20) for index in range(count)]


def _save(figure: Figure, directory: Path, name: str) -> Path:
    path = directory / (re.sub(r"[^A-Za-z0-9._-]+", "_", name) + ".png")
    figure.savefig(path, dpi=_DPI)
    return path
