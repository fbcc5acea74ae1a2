"""bar: a progress bar on standard error."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

from ..progress import progress, report_progress


@contextmanager
def progress_bar() -> Iterator[None]:
    """Within the block, what is reported as progress is drawn, and passed on to whoever watches outside it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    outside = contextvars.copy_context()
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("windows", total=None)

        def show(phase: str, done: int, total: int) -> None:
            bars.update(task, description=phase, completed=done, total=total or None)
            outside.run(progress, phase, done, total)

        with report_progress(show):
            yield
