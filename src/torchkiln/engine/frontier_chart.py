"""frontier_chart: a Frontier as a picture."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from os import PathLike
from typing import TYPE_CHECKING

from ..errors import MissingPackage, UserError

if TYPE_CHECKING:
    from .frontier import Frontier, FrontierPoint

_KEPT, _WITHIN, _OUTSIDE = "#c2410c", "#0f766e", "#94a3b8"
_DPI = 130
#: Where an error of zero, or none that is finite, stands on the logarithmic axis, as a factor of the smallest and the largest there are.
_MARGIN = 3.0


def check_chart_path(path: str | PathLike[str]) -> None:
    """Raises MissingPackage without matplotlib, UserError for a format it does not know."""
    if find_spec("matplotlib") is None:
        raise MissingPackage('the plot needs matplotlib, which is not installed: pip install "torchkiln[report]"')
    from matplotlib.backend_bases import FigureCanvasBase

    name = os.fspath(path)
    if os.path.splitext(name)[1].lstrip(".").lower() not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"frontier: {name}: expected a name that ends in .png, .svg or .pdf")


def draw_frontier(frontier: Frontier, path: str | PathLike[str]) -> None:
    """One point an engine, a line through the best ones, the budget as a dashed line; errors on a logarithmic scale."""
    check_chart_path(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, no display, no change of the caller's backend.
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    by_error = frontier.budget == "max_error"
    heights = _errors(frontier.points) if by_error else [point.accuracy or 0.0 for point in frontier.points]
    best = sorted((point.median_ms, height) for point, height in zip(frontier.points, heights, strict=True) if point.is_best)
    axes.plot([time for time, _ in best], [height for _, height in best], color=_OUTSIDE, linewidth=1, zorder=1)
    for number, (point, height) in enumerate(zip(frontier.points, heights, strict=True)):
        color = _KEPT if point.is_kept else _WITHIN if point.within else _OUTSIDE
        axes.scatter([point.median_ms], [height], color=color, s=60 if point.is_kept else 28, zorder=2)
        axes.annotate(point.name, (point.median_ms, height), textcoords="offset points", xytext=(6, (4, -10)[number % 2]), fontsize=7)
    axes.axhline(_limit(frontier), color="black", linestyle="--", linewidth=0.8)
    if by_error:
        axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("median latency of one call, ms")
    axes.set_ylabel("relative error (a point at the top: not finite)" if by_error else "accuracy")
    axes.set_title(f"{frontier.budget} {frontier.limit:g}: kept (orange), within (green), outside (grey)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(os.fspath(path), dpi=_DPI)


def _limit(frontier: Frontier) -> float:
    if frontier.budget == "max_error":
        return frontier.limit
    return max((point.accuracy or 0.0 for point in frontier.points if point.layers.keys() <= {"fp32"}), default=0.0) - frontier.limit


def _errors(points: list[FrontierPoint]) -> list[float]:
    errors = [math.inf if point.relative_error is None else point.relative_error for point in points]
    finite = [error for error in errors if error and math.isfinite(error)]
    low, high = (min(finite) / _MARGIN, max(finite) * _MARGIN) if finite else (1e-6, 1.0)
    return [(error or low) if math.isfinite(error) else high for error in errors]
