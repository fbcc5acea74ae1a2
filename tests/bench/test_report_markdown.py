"""markdown_report: the two tables people know, with our rows."""

from pathlib import Path

from torchkiln.bench.report_markdown import SUMMARY_COLUMNS, figures_table, markdown_report, speed_up_table, summary_table

from .fakes import make_result, make_row

ROWS = [
    make_row("eager", median=8.0),
    make_row("eager", "bf16", median=6.0),
    make_row("torchscript-traced", median=5.0),
    make_row("torchscript-scripted", median=None),
    make_row("torchkiln", median=4.0, options="openvino, fp32", max_abs_error=3e-6),
    make_row("torchkiln", "auto", median=2.0, chosen_precision="bf16"),
]


def table(text):
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    assert all(set(cell) == {"-"} for cell in lines[1])
    assert len({len(line) for line in lines}) == 1
    return lines[0], lines[2:]


def test_the_speed_up_table():
    header, body = table(speed_up_table(ROWS))
    assert header == ["Model", "Average Time", "Iteration/s", "Speed up wrt torchkiln fp32", "Speed up wrt torchkiln auto"]
    assert body == [
        ["Pytorch fp32", "10.00 ms", "100.00", "2.00", "4.00"],
        ["Pytorch bf16", "7.50 ms", "133.33", "1.50", "3.00"],
        ["Traced Pytorch fp32", "6.25 ms", "160.00", "1.25", "2.50"],
        ["Scripted Pytorch fp32", "failed", "-", "-", "-"],
        ["torchkiln fp32", "5.00 ms", "200.00", "-", "-"],
        ["torchkiln auto", "2.50 ms", "400.00", "-", "-"],
    ]


def test_the_nine_columns():
    header, body = table(summary_table(make_result(*ROWS)))
    assert tuple(header) == SUMMARY_COLUMNS
    assert len(header) == 9
    assert body[0] == ["net", "fp32", "2x3x9x11", "openvino, fp32", "3.0e-06", "250.0/s", "500.0/s", "8.000 ms", "4.000 ms"]
    # "auto" has no eager of its own: fp32, and the cells say so
    assert body[1][1] == "auto (bf16)"
    assert body[1][5:] == ["250.0/s (fp32)", "1000.0/s", "8.000 ms (fp32)", "2.000 ms"]


def test_pytorch_stands_at_the_engines_precision_or_not_at_all():
    _, body = table(summary_table(make_result(make_row("eager", "bf16", median=6.0), make_row("torchkiln", "bf16", median=3.0))))
    assert body[0][7:] == ["6.000 ms", "3.000 ms"]
    _, body = table(summary_table(make_result(make_row("torchkiln", median=3.0))))
    assert body[0][5::2] == ["-", "-"]


def test_all_figures_fastest_first_the_best_bold():
    _, body = table(figures_table(ROWS))
    assert [line[0] for line in body] == ["**torchkiln**", "torchkiln", "torchscript-traced", "eager", "eager", "torchscript-scripted"]


def test_the_page_has_it_all():
    environment = {"gpus": [{"name": "H200", "driver": "580", "cuda": "13.0", "cudnn": 91900}]}
    page = markdown_report(make_result(*ROWS, **environment), [Path("somewhere/latency.png")])
    assert "## net, 2x3x9x11, cpu" in page
    assert "- torchscript-scripted fp32: failed: it \\| broke" in page
    assert "![latency](latency.png)" in page
    assert "GPU: H200, driver 580" in page
    assert "`torchkiln bench net`" in page
