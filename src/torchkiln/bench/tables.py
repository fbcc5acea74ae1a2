"""print_table: the result on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ratios import best_engine, best_row, find_row, sorted_rows, speed_up
from .result import BenchmarkResult, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLUMNS = (
    "runner",
    "precision",
    "median ms",
    "p90",
    "min",
    "per s",
    "vs eager fp32",
    "vs torchkiln",
    "rel. error",
    "max abs error",
    "build s",
    "memory MB",
)

#: What a narrow screen does without, in this order; the JSON and the report have everything.
DROP_ORDER = ("memory MB", "max abs error", "min", "build s", "per s", "p90", "vs torchkiln")


def print_table(result: BenchmarkResult, console: Console | None = None) -> None:
    """One table for each model, shape and device: fastest first, the best marked with a star, the reasons and notes below."""
    if console is None:
        from rich.console import Console

        console = Console()
    for (model, shape, device), rows in result.groups().items():
        console.print(_table(f"{model}  {shape}  {device}", rows, console.width))
        for text in remarks(rows):
            console.print(f"  {text}", style="dim", markup=False, highlight=False)


def cells(row: Row, group: list[Row]) -> list[str]:
    """The texts of one row, in the order of COLUMNS; dashes where there is no figure."""
    latency = row.latency_ms
    if latency is None:
        return [row.runner, row.precision, row.status, *["-"] * (len(COLUMNS) - 3)]
    return [
        row.runner,
        row.precision,
        f"{latency.median:.3f}",
        f"{latency.p90:.3f}",
        f"{latency.min:.3f}",
        f"{row.throughput_per_s:.1f}",
        _factor(speed_up(find_row(group, "eager", "fp32"), row)),
        _factor(speed_up(best_engine(group), row)),
        error_text(row.relative_error),
        error_text(row.max_abs_error),
        "-" if row.build_s is None else f"{row.build_s:.1f}",
        "-" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:.0f}",
    ]


def remarks(rows: list[Row]) -> list[str]:
    """Why rows have no figures, and what to know about those that have; a note that all rows share is said once."""
    measured = [row for row in rows if row.latency_ms is not None]
    shared = [note for note in (measured[0].notes if measured else []) if all(note in row.notes for row in measured)]
    # One line for all precisions of a runner that say the same.
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        texts = [note for note in row.notes if note not in shared] if row.latency_ms is not None else [row.status_text]
        for text in texts:
            said.setdefault((row.runner, text), []).append(row.precision)
    return [*shared, *(f"{runner} {', '.join(precisions)}: {text}" for (runner, text), precisions in said.items())]


def error_text(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}"


def _table(title: str, rows: list[Row], width: int) -> Table:
    from rich.table import Table

    best = best_row(rows)
    lines = [(row, cells(row, rows)) for row in sorted_rows(rows)]
    for row, texts in lines:
        if row is best:
            texts[0] = f"★ {texts[0]}"
    shown = _columns_that_fit([texts for _, texts in lines], width)
    table = Table(title=title, title_justify="left")
    for index in shown:
        table.add_column(COLUMNS[index], justify="left" if index < 2 else "right", no_wrap=True)
    for row, texts in lines:
        table.add_row(*(texts[index] for index in shown), style="bold" if row is best else "dim" if row.latency_ms is None else None)
    return table


def _columns_that_fit(lines: list[list[str]], width: int) -> list[int]:
    """The columns to show: on a narrow screen whole columns are left out, the least telling first, rather than every figure cut short."""
    shown = list(range(len(COLUMNS)))
    needed = [3 + max(len(text) for text in (name, *(line[index] for line in lines))) for index, name in enumerate(COLUMNS)]
    for name in DROP_ORDER:
        if 1 + sum(needed[index] for index in shown) <= width:
            break
        shown.remove(COLUMNS.index(name))
    return shown


def _factor(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
