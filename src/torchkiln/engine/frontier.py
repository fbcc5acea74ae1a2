"""Frontier: what a precision search found, as the report keeps it: engines by time and error, and what each layer costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike


@dataclass
class FrontierPoint:
    """An engine that was built and measured.

    ``layers``: how many layers are in each precision. ``relative_error``: against the source model, the worst over the checked shapes (inf where
    infinities or NaNs arise); None where it was not looked at. ``accuracy``: what the caller's function gave. ``within``: whether it is within the
    budget. ``is_best``: whether no other engine is both faster and better. ``is_kept``: whether it is the engine.
    """

    name: str
    layers: dict[str, int]
    median_ms: float
    relative_error: float | None = None
    accuracy: float | None = None
    within: bool = False
    is_best: bool = False
    is_kept: bool = False


@dataclass
class LayerReport:
    """A layer (or several neighbours) and the precision it has in the engine.

    ``error``: the relative error of the model's output with only this layer narrow, by precision. ``time_us``: what it takes, by
    precision. Both are empty where the search ended without them.
    """

    name: str
    precision: str
    operators: int
    error: dict[str, float] = field(default_factory=dict)
    time_us: dict[str, float] = field(default_factory=dict)


@dataclass
class Frontier:
    """``budget``: "max_error" or "max_drop"; ``limit``: its value. ``times_from``: where the times of layers come from. ``enabled_precisions``,
    ``keep_float32`` and ``skip`` (of QuantizeOptions): what makes the engine again without a search."""

    budget: str
    limit: float
    points: list[FrontierPoint] = field(default_factory=list)
    layers: list[LayerReport] = field(default_factory=list)
    times_from: str = ""
    enabled_precisions: list[str] = field(default_factory=list)
    keep_float32: list[str] = field(default_factory=list)
    skip: list[str] = field(default_factory=list)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw time against error (or accuracy) into a file; its ending names the format (png, svg, pdf).

        Raises MissingPackage without matplotlib, UserError for a format it does not know.
        """
        from .frontier_chart import draw_frontier

        draw_frontier(self, path)
