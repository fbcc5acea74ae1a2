"""write_report: a folder with the result as Markdown, HTML, JSON and charts."""

from __future__ import annotations

import os
from pathlib import Path

from .charts import draw_charts
from .report_html import html_report
from .report_markdown import markdown_report
from .result import BenchmarkResult
from .results_file import write_json


def write_report(result: BenchmarkResult, directory: str | os.PathLike[str]) -> Path:
    """Write report.md, report.html, results.json and the PNG charts; returns the path of report.md.

    Raises MissingPackage without matplotlib (``pip install "torchkiln[report]"``); the figures and the pages without charts are there by then.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(result, folder / "results.json")
    # First without charts: the tables of a long run must not depend on a drawing library.
    _write_pages(result, [], folder)
    _write_pages(result, draw_charts(result, folder), folder)
    return folder / "report.md"


def _write_pages(result: BenchmarkResult, charts: list[Path], folder: Path) -> None:
    (folder / "report.md").write_text(markdown_report(result, charts), encoding="utf-8")
    (folder / "report.html").write_text(html_report(result, charts), encoding="utf-8")
