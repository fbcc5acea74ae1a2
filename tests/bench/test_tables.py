"""print_table: on a wide and on a narrow screen."""

import io

from rich.console import Console

from torchkiln.bench.tables import COLUMNS, DROP_ORDER, cells, print_table, remarks

from .fakes import make_result, make_row

ROWS = [
    make_row("eager", median=8.0, notes=["shared"]),
    make_row("torchkiln", "bf16", median=2.0, notes=["shared", "its own"]),
    make_row("openvino", "fp32", median=None),
    make_row("openvino", "bf16", median=None),
]


def printed(width, *rows):
    console = Console(file=io.StringIO(), width=width)
    print_table(make_result(*rows), console)
    return console.file.getvalue()


def test_a_wide_screen_shows_every_column_and_the_ratios():
    text = printed(200, *ROWS)
    assert all(name in text for name in COLUMNS)
    best = next(line for line in text.splitlines() if "★" in line)
    assert "torchkiln" in best
    assert "4.00x" in best
    assert "1.00x" in best
    lines = [line for line in text.splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in lines] == ["★ torchkiln", "eager", "openvino", "openvino"]


def test_a_narrow_screen_drops_whole_columns_and_cuts_nothing():
    text = printed(70, *ROWS)
    assert "memory MB" not in text
    assert "vs eager fp32" in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines() if line.startswith("│")) <= 70
    assert set(DROP_ORDER) < set(COLUMNS)


def test_a_failed_row_shows_its_status_and_dashes():
    row = ROWS[2]
    assert cells(row, ROWS) == ["openvino", "fp32", "failed", *["-"] * (len(COLUMNS) - 3)]


def test_figures_that_are_missing_are_dashes():
    row = make_row("eager", build_s=None, peak_memory_bytes=None, relative_error=None, max_abs_error=None)
    assert cells(row, [row])[6:] == ["1.00x", "-", "-", "-", "-", "-"]


def test_remarks_say_shared_things_once():
    assert remarks(ROWS) == ["shared", "torchkiln bf16: its own", "openvino fp32, bf16: failed: it | broke"]
    assert "[/red]" in printed(120, make_row("eager", median=None, reason="odd [/red] markup"))
