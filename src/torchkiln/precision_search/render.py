"""render: a Bisection as text for a terminal."""

from __future__ import annotations

import math
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .bisect_nodes import Bisection, Culprit

WIDTH = 120


def render_bisection(found: Bisection) -> str:
    """What ``torchkiln bisect`` prints: the error, the first operator, the smallest set, and what to pass to compile."""
    console = Console(file=StringIO(), width=WIDTH, force_terminal=False, color_system=None, emoji=False, markup=False, highlight=False)
    text = f"{found.precision}: relative error {error_text(found.error)} with {found.operators} operators narrow, tolerance {found.tolerance:.3g}"
    if found.first is None:
        console.print(f"{text}: it holds")
        return console.file.getvalue()  # type: ignore[attr-defined]
    console.print(text)
    first = found.first
    module = f" in {first.module}" if first.module else ""
    console.print(f"first operator at which the tolerance breaks: {first.where}: {first.op}{module}, error {error_text(first.error_without)} with it")
    plural = "operator" if len(found.smallest) == 1 else "operators"
    console.print(_table(f"smallest set that must stay in float32 ({len(found.smallest)} {plural})", found.smallest))
    console.print(f"with these in float32 the error is {error_text(found.error_kept)}")
    names = ", ".join(repr(name) for name in found.keep_float32)
    calibrator = ", calibrator=..." if found.precision == "int8" else ""
    console.print(f"torchkiln.compile(..., enabled_precisions={{{_dtype(found.precision)}}}{calibrator}, keep_float32={{{names}}})")
    return console.file.getvalue()  # type: ignore[attr-defined]


def _dtype(precision: str) -> str:
    return {"fp16": "torch.float16", "bf16": "torch.bfloat16"}.get(precision, f"torch.{precision}")


def _table(title: str, culprits: tuple[Culprit, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="", expand=False)
    for name in ("module", "operator", "where"):
        table.add_column(name, overflow="fold")
    table.add_column("error without it", justify="right")
    table.add_column("error of it alone", justify="right")
    for culprit in culprits:
        cells = (culprit.module, culprit.op, culprit.where, error_text(culprit.error_without), error_text(culprit.error_alone))
        table.add_row(*map(Text, cells))
    return table


def error_text(error: float | None) -> str:
    return "not finite" if error is None or not math.isfinite(error) else f"{error:.2e}"
