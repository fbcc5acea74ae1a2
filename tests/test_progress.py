"""Progress reaches whoever is watching, and nobody else."""

from __future__ import annotations

import threading

from torchkiln.progress import progress, report_progress


def test_it_is_silent_without_a_callback_and_nests() -> None:
    outer: list[tuple[str, int, int]] = []
    inner: list[tuple[str, int, int]] = []
    progress("nobody", 0, 1)
    with report_progress(lambda *step: outer.append(step)):
        progress("a", 1, 3)
        with report_progress(lambda *step: inner.append(step)):
            progress("b", 2, 3)
        progress("c", 3, 3)
    progress("nobody", 1, 1)
    assert outer == [("a", 1, 3), ("c", 3, 3)]
    assert inner == [("b", 2, 3)]


def test_another_thread_does_not_report_to_this_ones_callback() -> None:
    steps: list[str] = []
    with report_progress(lambda phase, done, total: steps.append(phase)):
        thread = threading.Thread(target=progress, args=("elsewhere", 0, 1))
        thread.start()
        thread.join()
        progress("here", 0, 1)
    assert steps == ["here"]
