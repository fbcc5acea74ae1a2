"""html_report: the result as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .ratios import best_row, sorted_rows
from .result import BenchmarkResult
from .tables import COLUMNS, cells, remarks

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1e293b }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #e2e8f0 }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
tr.best { font-weight: bold; background: #fff7ed }  tr.unmeasured { color: #94a3b8 }
img { max-width: 100% }  ul { color: #475569; font-size: 13px }
"""


def html_report(result: BenchmarkResult, charts: Sequence[Path] = ()) -> str:
    """A table for each model and shape with its remarks, and the charts embedded."""
    parts = ["<h1>Benchmark</h1>", f"<p>{escape(_machine(result))}</p>"]
    for (model, shape, device), rows in result.groups().items():
        parts.append(f"<h2>{escape(f'{model}, {shape}, {device}')}</h2>")
        best = best_row(rows)
        lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in COLUMNS) + "</tr>"]
        for row in sorted_rows(rows):
            kind = "best" if row is best else "unmeasured" if row.latency_ms is None else ""
            lines.append(f'<tr class="{kind}">' + "".join(f"<td>{escape(text)}</td>" for text in cells(row, rows)) + "</tr>")
        parts.append("<table>" + "\n".join(lines) + "</table>")
        parts.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in remarks(rows)) + "</ul>")
    for path in charts:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        parts.append(f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">')
    body = "\n".join(parts)
    head = f'<head><meta charset="utf-8"><title>Benchmark</title><style>{_STYLE}</style></head>'
    return f'<!doctype html>\n<html lang="en">{head}\n<body>{body}</body></html>\n'


def _machine(result: BenchmarkResult) -> str:
    environment = result.environment
    cpu = environment.get("cpu", {})
    gpus = [gpu.get("name", "GPU") for gpu in environment.get("gpus", [])]
    where = ", ".join([*gpus, f"{cpu.get('model')} ({environment.get('num_threads')} threads)"])
    return f"{where}; torch {environment.get('versions', {}).get('torch')}; {environment.get('date')}; {result.command}"
