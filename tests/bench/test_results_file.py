"""write_json, read_json: the schema other programs rely on, and every way a file can break it."""

import json
import math

import pytest

from torchkiln.bench.results_file import as_json, from_json, read_json, write_json
from torchkiln.errors import UserError

from .fakes import make_result, make_row

RESULT = make_result(
    make_row("eager"),
    make_row("torchkiln", "auto", notes=["a note"], options="fake", relative_error=math.inf),
    make_row("openvino", median=None),
    make_row("compile", peak_memory_bytes=None, build_s=None),
)


def test_a_written_result_reads_back_equal(tmp_path):
    path = tmp_path / "folder" / "cpu.json"
    write_json(RESULT, path)
    assert read_json(path) == RESULT
    assert [p.name for p in path.parent.iterdir()] == ["cpu.json"]


def test_the_schema():
    data = as_json(RESULT)
    assert data["schema"] == 1
    assert isinstance(data["environment"], dict)
    required = {
        *("model", "shape", "runner", "precision", "device", "status", "latency_ms"),
        *("throughput_per_s", "relative_error", "max_abs_error", "build_s", "peak_memory_bytes"),
    }
    for row in data["rows"]:
        assert required <= set(row)
    assert set(data["rows"][0]["latency_ms"]) == {"min", "mean", "median", "p90", "p95", "p99", "max"}
    assert data["rows"][1]["runner"] == "torchkiln"
    assert data["rows"][1]["relative_error"] == "inf"
    assert data["rows"][2]["latency_ms"] is None
    json.dumps(data, allow_nan=False)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "cpu.json"
    write_json(RESULT, path)
    before = path.read_text()
    with pytest.raises(TypeError):
        write_json(make_result(make_row("eager"), cpu=object()), path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cpu.json"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.update(schema=2), r"results\.schema: expected 1, got 2"),
        (lambda d: d.pop("schema"), r"results\.schema"),
        (lambda d: d.update(environment=[]), r"results\.environment: expected an object"),
        (lambda d: d.update(rows={}), r"results\.rows: expected a list"),
        (lambda d: d["rows"].__setitem__(1, 3), r"results\.rows\[1\]: expected an object, got 3"),
        (lambda d: d["rows"][1].pop("runner"), r"results\.rows\[1\]\.runner: expected a string, got None"),
        (lambda d: d["rows"][0].update(status="fine"), r"rows\[0\]\.status: expected ok or missing"),
        (lambda d: d["rows"][0]["latency_ms"].pop("p99"), r"rows\[0\]\.latency_ms\.p99: expected a number"),
        (lambda d: d["rows"][0]["latency_ms"].update(median="fast"), r"latency_ms\.median: expected a number >= 0, got 'fast'"),
        (lambda d: d["rows"][0].update(latency_ms=None), r"rows\[0\]\.latency_ms: expected figures for status ok alone"),
        (lambda d: d["rows"][2].update(latency_ms=d["rows"][0]["latency_ms"]), r"rows\[2\]\.latency_ms"),
        (lambda d: d["rows"][0].update(build_s=-1), r"build_s: expected a number >= 0, 'inf' or null, got -1"),
        (lambda d: d["rows"][0].update(build_s=True), r"build_s"),
        (lambda d: d["rows"][0].pop("peak_memory_bytes"), r"peak_memory_bytes: expected a number or null, got 'nothing'"),
        (lambda d: d["rows"][0].update(notes="x"), r"notes: expected a list of strings"),
        (lambda d: d["rows"][0].update(samples=-1), r"samples"),
        (lambda d: d["rows"][0].update(options=3), r"options: expected a string, got 3"),
    ],
)
def test_a_spoilt_file_is_refused_naming_the_place(spoil, message):
    data = json.loads(json.dumps(as_json(RESULT)))
    spoil(data)
    with pytest.raises(UserError, match=message):
        from_json(data)


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_something_else_is_refused(data):
    with pytest.raises(UserError, match="expected an object"):
        from_json(data)


def test_unknown_keys_are_ignored_so_that_rows_may_grow():
    data = as_json(RESULT)
    data["rows"][0]["energy_j"] = 3
    assert from_json(data) == RESULT


def test_a_file_that_is_not_json(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"x\.json: expected a benchmark's JSON"):
        read_json(path)
