"""markdown_report: the result as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .ratios import best_row, engine_rows, find_row, sorted_rows
from .result import BenchmarkResult, Latency, Row
from .tables import COLUMNS, cells, error_text, remarks

#: The columns of torch2trt's benchmark, with the engine in TensorRT's place.
SUMMARY_COLUMNS = (
    "Name",
    "Data Type",
    "Input Shapes",
    "Options",
    "Max Error",
    "Throughput (PyTorch)",
    "Throughput (torchkiln)",
    "Latency (PyTorch)",
    "Latency (torchkiln)",
)

#: What the peers are called in the table that people know from articles.
_TITLES = {"eager": "Pytorch", "torchscript-traced": "Traced Pytorch", "torchscript-scripted": "Scripted Pytorch"}


def markdown_report(result: BenchmarkResult, charts: Sequence[Path] = ()) -> str:
    """The page: the engine against PyTorch, then for each model and shape the speed-ups, all figures and remarks, then charts and machine.

    ``charts`` are linked by their names, so they must lie beside the page.
    """
    parts = ["# Benchmark", summary_table(result)]
    for (model, shape, device), rows in result.groups().items():
        parts += [f"## {model}, {shape}, {device}", speed_up_table(rows), "All figures (times in ms, fastest first):", figures_table(rows)]
        texts = remarks(rows)
        if texts:
            parts.append("\n".join(f"- {_escape(text)}" for text in texts))
    if charts:
        parts += ["## Charts", *(f"![{path.stem}]({path.name})" for path in charts)]
    parts += ["## How it was measured", _how(result)]
    return "\n\n".join(parts) + "\n"


def speed_up_table(rows: Sequence[Row]) -> str:
    """``speed_up_lines`` as Markdown."""
    return markdown_table(*speed_up_lines(rows))


def speed_up_lines(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """``(header, lines)``: model, average time, iterations a second, and the speed-up of each engine row over this row ("-" for the engine rows).

    Average and iterations are means, as in the table this one follows; the figures table below it has the medians.
    """
    engines = engine_rows(rows)
    header = ["Model", "Average Time", "Iteration/s", *(f"Speed up wrt {engine.runner} {engine.precision}" for engine in engines)]
    body = []
    for row in rows:
        latency = row.latency_ms
        title = f"{_TITLES.get(row.runner, row.runner)} {row.precision}"
        if latency is None:
            body.append([title, row.status, *["-"] * (len(header) - 2)])
            continue
        factors = ["-" if row in engines else _mean_factor(latency, engine) for engine in engines]
        body.append([title, f"{latency.mean:.2f} ms", f"{1000 / latency.mean:.2f}", *factors])
    return header, body


def figures_table(rows: list[Row]) -> str:
    """The columns of the table on the screen; the best row is bold."""
    best = best_row(rows)
    body = [[f"**{text}**" if row is best else text for text in cells(row, rows)] for row in sorted_rows(rows)]
    return markdown_table(COLUMNS, body)


def summary_table(result: BenchmarkResult) -> str:
    """torch2trt's nine columns, a line for each engine row. PyTorch is eager at the engine's precision, or fp32 where there is no such row; the
    cell then says so. The data type of an "auto" engine is followed by the one it chose."""
    body = []
    for (model, shape, _), rows in result.groups().items():
        for engine in engine_rows(rows):
            eager = find_row(rows, "eager", engine.precision) or find_row(rows, "eager", "fp32")
            note = "" if eager is None or eager.precision == engine.precision else f" ({eager.precision})"
            body.append(
                [
                    model,
                    _data_type(engine),
                    shape,
                    engine.options,
                    error_text(engine.max_abs_error),
                    _throughput(eager) + note,
                    _throughput(engine),
                    _median(eager) + note,
                    _median(engine),
                ]
            )
    return markdown_table(SUMMARY_COLUMNS, body)


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(_escape(text) for text in line) + " |" for line in lines)


def _how(result: BenchmarkResult) -> str:
    environment = result.environment
    cpu = environment.get("cpu", {})
    lines = [
        f"- Processor: {cpu.get('model')}, {cpu.get('usable_cores')} cores, {environment.get('num_threads')} threads, {' '.join(cpu.get('isa', []))}",
        *(f"- GPU: {gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}" for gpu in environment.get("gpus", [])),
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items()),
        f"- torchkiln {environment.get('torchkiln')}, commit {environment.get('commit')}, Python {environment.get('python')}",
        f"- Date: {environment.get('date')}; load average at the start: {environment.get('load_average')}",
        f"- Command: `{result.command}`",
        "- Settings: " + ", ".join(f"{name} {value}" for name, value in result.settings.items()),
        "- Throughput is batch items a second at the median latency. Errors are against the source model in float32.",
    ]
    return "\n".join(lines)


def _data_type(engine: Row) -> str:
    return f"{engine.precision} ({engine.chosen_precision})" if engine.chosen_precision not in ("", engine.precision) else engine.precision


def _mean_factor(latency: Latency, engine: Row) -> str:
    assert engine.latency_ms is not None  # engine_rows are measured
    return f"{latency.mean / engine.latency_ms.mean:.2f}"


def _throughput(row: Row | None) -> str:
    return "-" if row is None or row.throughput_per_s is None else f"{row.throughput_per_s:.1f}/s"


def _median(row: Row | None) -> str:
    return "-" if row is None or row.latency_ms is None else f"{row.latency_ms.median:.3f} ms"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
