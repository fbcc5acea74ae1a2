"""show_progress: a bar on standard error while a benchmark runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..progress import report_progress

#: (what is being done, steps done, steps in all)
Progress = Callable[[str, int, int], None]


@contextmanager
def show_progress(enabled: bool) -> Iterator[Progress]:
    """A function that moves the bar. Draws nothing unless ``enabled`` and standard error is a terminal; the engine's own phases show beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("preparing", total=None)
        last = ["preparing"]

        def show(what: str, done: int, total: int) -> None:
            last[0] = what
            bar.update(task, description=what, completed=done, total=total)

        def show_phase(phase: str, done: int, total: int) -> None:
            bar.update(task, description=f"{last[0]} ({phase})")

        with report_progress(show_phase):
            yield show
