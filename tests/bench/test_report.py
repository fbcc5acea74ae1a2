"""write_report: the folder, the charts, the page that needs nothing beside it."""

import pytest

from torchkiln.bench.charts import draw_charts
from torchkiln.bench.report import write_report
from torchkiln.bench.report_html import html_report
from torchkiln.bench.results_file import read_json
from torchkiln.errors import MissingPackage

from .fakes import make_result, make_row

PNG = b"\x89PNG\r\n\x1a\n"
SWEEP = make_result(
    *(
        make_row(runner, median=m * f, shape=shape)
        for shape, f in (("1x3x8x8", 1), ("1x3x16x16", 3))
        for runner, m in (("eager", 2.0), ("torchkiln", 1.0))
    ),
    make_row("openvino", median=None, shape="1x3x8x8"),
    make_row("eager", median=None, model="a/b <c>"),
)


def test_a_chart_for_each_shape_and_one_for_the_sweep(tmp_path):
    files = draw_charts(SWEEP, tmp_path)
    assert [f.name for f in files] == ["latency-net-1x3x8x8-cpu.png", "latency-net-1x3x16x16-cpu.png", "shapes-net-cpu.png"]
    for file in files:
        data = file.read_bytes()
        assert data.startswith(PNG)
        assert len(data) > 5000


def test_one_shape_needs_no_sweep_chart_and_names_make_safe_files(tmp_path):
    files = draw_charts(make_result(make_row("eager", model="../up a:b", device="cuda:0")), tmp_path)
    assert [f.parent for f in files] == [tmp_path]
    assert [f.name for f in files] == ["latency-.._up_a_b-2x3x9x11-cuda_0.png"]


def test_bars_have_the_medians_heights():
    from torchkiln.bench.charts import latency_chart, shape_chart

    rows = [make_row("torchkiln", median=1.0), make_row("eager", median=3.0, device="cpu")]
    axes = latency_chart("t", rows).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1.0, 3.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["torchkiln fp32", "eager fp32"]
    axes = shape_chart("t", {"a": rows, "b": rows[:1]}).axes[0]
    assert sorted(bar.get_height() for bar in axes.patches) == [1.0, 1.0, 3.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


def test_the_folder(tmp_path):
    page = write_report(SWEEP, tmp_path / "deep" / "report")
    folder = page.parent
    assert page.name == "report.md"
    assert read_json(folder / "results.json") == SWEEP
    for name in ("latency-net-1x3x8x8-cpu.png", "shapes-net-cpu.png"):
        assert (folder / name).exists()
        assert f"]({name})" in page.read_text()
    html = (folder / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3


def test_html_escapes_names():
    html = html_report(SWEEP)
    assert "a/b &lt;c&gt;" in html
    assert "<c>" not in html
    assert 'class="best"' in html


def test_without_matplotlib_figures_and_tables_are_kept_and_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("torchkiln.bench.charts.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"torchkiln\[report\]"):
        write_report(SWEEP, tmp_path)
    assert read_json(tmp_path / "results.json") == SWEEP
    assert "## net, 1x3x8x8, cpu" in (tmp_path / "report.md").read_text()
    assert "<table>" in (tmp_path / "report.html").read_text()
