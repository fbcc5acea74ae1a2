"""write_json, read_json: a benchmark's result as a file that other programs read.

    {"schema": 1, "environment": {...}, "command": "...", "settings": {...}, "runs": [...],
     "rows": [{"model", "shape", "runner", "precision", "device", "status",
               "latency_ms": {"min", "mean", "median", "p90", "p95", "p99", "max"} or null,
               "throughput_per_s", "relative_error", "max_abs_error", "build_s", "peak_memory_bytes",
               "within_tolerance", "reason", "samples", "options", "chosen_precision", "notes"}]}

JSON has no infinity: an infinite error is the string "inf".
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from .result import STATUSES, BenchmarkResult, Latency, Row

SCHEMA = 1

_TEXTS = ("model", "shape", "runner", "precision", "device", "status")
_OPTIONAL_TEXTS = ("reason", "options", "chosen_precision")
_NUMBERS = ("throughput_per_s", "relative_error", "max_abs_error", "build_s", "peak_memory_bytes")


def as_json(result: BenchmarkResult) -> dict[str, Any]:
    """The result as JSON values, in the schema above."""
    return {
        "schema": SCHEMA,
        "environment": result.environment,
        "command": result.command,
        "settings": result.settings,
        "runs": result.runs,
        "rows": [{name: _encode(value) for name, value in asdict(row).items()} for row in result.rows],
    }


def from_json(data: Any, where: str = "results") -> BenchmarkResult:
    """Raises UserError naming the place, what was expected and what came."""
    _expect(isinstance(data, Mapping), where, "an object", data)
    _expect(data.get("schema") == SCHEMA, f"{where}.schema", f"{SCHEMA}", data.get("schema"))
    _expect(isinstance(data.get("environment"), Mapping), f"{where}.environment", "an object", data.get("environment"))
    _expect(isinstance(data.get("rows"), list), f"{where}.rows", "a list", data.get("rows"))
    rows = [_row(row, f"{where}.rows[{index}]") for index, row in enumerate(data["rows"])]
    return BenchmarkResult(dict(data["environment"]), rows, data.get("command", ""), data.get("settings", {}), data.get("runs", []))


def write_json(result: BenchmarkResult, path: str | os.PathLike[str]) -> None:
    """Write the result atomically; folders on the way are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(result), indent=1, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: str | os.PathLike[str]) -> BenchmarkResult:
    """Raises UserError when the file is not a benchmark result of this schema, OSError when it cannot be read."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: expected a benchmark's JSON, got something else: {error}") from None
    return from_json(data, str(path))


def _row(data: Any, where: str) -> Row:
    _expect(isinstance(data, Mapping), where, "an object", data)
    known = {f.name for f in fields(Row)}
    values = {name: value for name, value in data.items() if name in known}
    for name in _TEXTS:
        _expect(isinstance(values.get(name), str), f"{where}.{name}", "a string", values.get(name))
    for name in _OPTIONAL_TEXTS:
        _expect(isinstance(values.get(name, ""), str), f"{where}.{name}", "a string", values.get(name))
    _expect(values["status"] in STATUSES, f"{where}.status", " or ".join(STATUSES), values["status"])
    for name in _NUMBERS:
        _expect(name in values, f"{where}.{name}", "a number or null", "nothing")
        values[name] = _number(values[name], f"{where}.{name}", optional=True)
    values["latency_ms"] = _latency(values.get("latency_ms"), f"{where}.latency_ms")
    _expect((values["status"] == "ok") == (values["latency_ms"] is not None), f"{where}.latency_ms", "figures for status ok alone", data["status"])
    samples = values.get("samples", 0)
    _expect(isinstance(samples, int) and samples >= 0, f"{where}.samples", "an integer >= 0", samples)
    notes = values.get("notes", [])
    _expect(isinstance(notes, list) and all(isinstance(n, str) for n in notes), f"{where}.notes", "a list of strings", notes)
    return Row(**values)


def _latency(data: Any, where: str) -> Latency | None:
    if data is None:
        return None
    _expect(isinstance(data, Mapping), where, "an object or null", data)
    values = {f.name: _number(data.get(f.name), f"{where}.{f.name}") for f in fields(Latency)}
    return Latency(**values)


def _number(value: Any, where: str, optional: bool = False) -> Any:
    if value == "inf":
        return math.inf
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    _expect(good or (optional and value is None), where, "a number >= 0" + (", 'inf' or null" if optional else ""), value)
    return value


def _encode(value: Any) -> Any:
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _expect(condition: bool, where: str, expected: str, got: Any) -> None:
    if not condition:
        raise UserError(f"{where}: expected {expected}, got {got!r}")
