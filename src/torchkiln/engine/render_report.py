"""render_report: a Report as text for a terminal."""

from __future__ import annotations

from collections import Counter
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .render_frontier import render_frontier
from .report import ParityReport, Report

WIDTH = 120


def render_report(report: Report) -> str:
    """The report as plain text, 120 columns wide: headline, segments, parity, candidates, rejects, 2:4 layers, notes, phases."""
    console = Console(file=StringIO(), width=WIDTH, force_terminal=False, color_system=None, emoji=False, markup=False, highlight=False)
    console.print(
        f"{report.model} on {report.device}: {report.backend} {report.precision} (allowed: {', '.join(report.enabled_precisions)}), "
        f"{report.op_count} operators, {report.torch_op_count} of them in PyTorch"
    )
    if report.segments:
        console.print(_segments(report))
    console.print(f"parity: {_parity(report.parity)}")
    if report.candidates:
        console.print(_candidates(report))
    if report.rejects:
        console.print(_rejects(report))
    if report.sparse_layers:
        console.print(_sparse_layers(report))
    for part in render_frontier(report.frontier) if report.frontier is not None else ():
        console.print(part)
    for note in report.notes:
        console.print(f"note: {note}")
    if report.phases_s:
        console.print(f"built in {report.build_s:.1f} s: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in report.phases_s.items())}")
    if report.versions:
        console.print(f"with {', '.join(f'{name} {version}' for name, version in report.versions.items())}")
    return console.file.getvalue()  # type: ignore[attr-defined]


def _table(title: str, columns: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="", expand=False)
    for name, justify in columns.items():
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _row(table: Table, *cells: object) -> None:
    # Text, not str: model names and reasons may hold square brackets, which are rich's markup.
    table.add_row(*(Text(str(cell)) for cell in cells))


def _segments(report: Report) -> Table:
    table = _table(
        "segments",
        {"name": "left", "backend": "left", "precision": "left", "operators": "right", "us": "right", "PyTorch us": "right", "note": "left"},
    )
    for s in report.segments:
        _row(table, s.name, s.backend, s.precision, s.op_count, _number(s.time_us, ".0f"), _number(s.torch_time_us, ".0f"), s.note)
    return table


def _candidates(report: Report) -> Table:
    table = _table(
        "candidates", {"candidate": "left", "status": "left", "build s": "right", "median ms": "right", "relative error": "right", "reason": "left"}
    )
    for c in report.candidates:
        _row(table, c.name, c.status, _number(c.build_s, ".1f"), _number(c.median_ms, ".3f"), _number(c.relative_error, ".1e"), c.reason)
    return table


def _rejects(report: Report) -> Table:
    """One row for each operator and reason: a model may hold the same refused operator a hundred times."""
    counts = Counter((r.subject, r.backend, r.reason) for r in report.rejects)
    first: dict[tuple[str, str, str], str] = {}
    for r in report.rejects:
        first.setdefault((r.subject, r.backend, r.reason), r.where)
    table = _table("rejects", {"refused": "left", "times": "right", "backend": "left", "reason": "left", "first at": "left"})
    for (subject, backend, reason), count in counts.most_common():
        _row(table, subject, count, backend, reason, first[subject, backend, reason])
    return table


def _sparse_layers(report: Report) -> Table:
    """Layers without the pattern are counted in the title: they were not asked for."""
    layers = report.sparse_layers
    counts = Counter(layer.outcome for layer in layers)
    title = f"2:4 weights: used in {counts['used']} of {len(layers)} layers, {counts['no pattern']} without the pattern"
    table = _table(
        title, {"layer": "left", "backend": "left", "2:4": "left", "run by": "left", "2:4 us": "right", "dense us": "right", "reason": "left"}
    )
    for s in layers:
        if s.outcome != "no pattern":
            _row(table, s.layer, s.backend, s.outcome, s.tactic or "-", _number(s.sparse_us, ".2f"), _number(s.dense_us, ".2f"), s.reason)
    return table


def _parity(parity: ParityReport) -> str:
    if not parity.verified:
        return "not verified (verify=False)"
    figures = (
        f"relative error {_number(parity.relative_error, '.1e')} (tolerance {_number(parity.tolerance, '.1e')}), "
        f"max abs error {_number(parity.max_abs_error, '.1e')}, cosine {_number(parity.cosine, '.6f')}, against {parity.reference}"
    )
    return f"{figures}, at {'; '.join(parity.checked_shapes)}" if parity.checked_shapes else figures


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
