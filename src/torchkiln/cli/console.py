"""What the commands show: results on standard output, everything else (progress, notes, errors) on standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..progress import report_progress


def stdout() -> Console:
    """A console on standard output; without a terminal it has room for whole rows instead of 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def stderr() -> Console:
    return Console(stderr=True)


def print_json(value: Any) -> None:
    """``value`` as JSON on standard output. NaN and infinities, which JSON has not, become null."""
    typer.echo(json.dumps(_finite(value), indent=2, allow_nan=False))


def print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        stderr().print(Text("note: ", style="cyan").append(note, style="default"), soft_wrap=True)


def print_error(error: BaseException) -> None:
    """The error's kind and message, and the notes added on its way up, on standard error."""
    lines = [str(error), *getattr(error, "__notes__", [])]
    text = Text(f"{type(error).__name__}: ", style="bold red").append("\n".join(lines), style="red")
    stderr().print(text, soft_wrap=True)


@contextmanager
def watch(label: str) -> Iterator[None]:
    """Within the block, show a spinner and the progress the library reports; on a terminal only, and gone at the end."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(label, total=None)

        def show(phase: str, done: int, total: int) -> None:
            bars.update(task, description=f"{label}: {phase}", completed=done, total=total or None)

        with report_progress(show):
            yield


def size_text(size_bytes: int) -> str:
    """``3400000`` -> ``"3.4 MB"``."""
    value, unit = float(size_bytes), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def check_writable(path: Path) -> None:
    """Fail before the long work, not after it. Raises typer.BadParameter."""
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder: expected the path of a file")
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path}: the folder {path.absolute().parent} does not exist")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
