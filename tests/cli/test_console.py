"""What the commands print."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import typer

from torchkiln.cli import console
from torchkiln.progress import progress


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (999, "999 B"), (3_400_000, "3.4 MB"), (5_250_000_000, "5.2 GB"), (7 * 10**13, "70000.0 GB")]
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert console.size_text(size_bytes) == text


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": [1.5, float("nan")], "b": (float("inf"), "nan"), "c": None})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None], "b": [None, "nan"], "c": None}


def test_an_error_is_printed_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("expected [bold]shape[/bold] (1, 3), " + "got a long line " * 20)
    if hasattr(error, "add_note"):
        error.add_note("while loading m.kiln")
    console.print_error(error)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"ValueError: {error}"
    assert lines[1:] == getattr(error, "__notes__", [])


def test_a_bar_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with console.watch("compiling m"):
        progress("build", 1, 2)
    assert capsys.readouterr() == ("", "")

    terminal = io.StringIO()
    shown = console.Console(file=terminal, force_terminal=True, width=100)
    monkeypatch.setattr(console, "stderr", lambda: shown)
    with console.watch("compiling m"):
        progress("build", 1, 2)
    assert "compiling m: build" in terminal.getvalue()


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    console.check_writable(tmp_path / "new")
    with pytest.raises(typer.BadParameter, match="is a folder"):
        console.check_writable(tmp_path)
    with pytest.raises(typer.BadParameter, match="does not exist"):
        console.check_writable(tmp_path / "absent" / "m.kiln")
