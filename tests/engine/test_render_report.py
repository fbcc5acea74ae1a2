"""render_report: every part of a report is on the screen, repeated rejects in one row, nothing read as markup."""

from __future__ import annotations

import json

import pytest

from torchkiln.engine.report import CandidateReport, ParityReport, RejectReport, Report, SegmentReport
from torchkiln.errors import CorruptEngineFile


def full_report():
    return Report(
        model="resnet[bold]34",
        device="cpu",
        backend="openvino",
        precision="bf16",
        enabled_precisions=["fp32", "bf16"],
        segments=[SegmentReport("segment_0", "openvino", "bf16", 70, 1234.4, 5678.0, "all but nms"), SegmentReport("segment_1", "torch", "fp32", 3)],
        rejects=[
            RejectReport("aten.nonzero.default", f"nonzero_{i} (model.py:{i})", "openvino", "output shape depends on the data") for i in range(37)
        ]
        + [RejectReport("fp16", "", "openvino", "this CPU has no avx512_fp16")],
        candidates=[
            CandidateReport("openvino bf16", "kept", 1.25, 3.4567, 4e-3),
            CandidateReport("inductor fp32", "unavailable", reason="no C++ compiler: install g++"),
        ],
        parity=ParityReport(True, "float32", 0.05, 3.2e-3, 0.125, 0.99991, ["2x3x224x224", "1x3x64x64"]),
        notes=["unused input 'mask'"],
        phases_s={"capture": 1.5, "build": 20.25},
        versions={"torch": "2.14.1"},
    )


def test_every_part_is_shown():
    text = str(full_report())
    for part in (
        "resnet[bold]34 on cpu: openvino bf16 (allowed: fp32, bf16), 73 operators, 3 of them in PyTorch",
        "segment_0",
        "all but nms",
        "1234",
        "5678",
        "relative error 3.2e-03 (tolerance 5.0e-02), max abs error 1.2e-01, cosine 0.999910, against float32",
        "2x3x224x224; 1x3x64x64",
        "3.457",
        "4.0e-03",
        "no C++ compiler: install g++",
        "this CPU has no avx512_fp16",
        "note: unused input 'mask'",
        "built in 21.8 s: capture 1.5 s, build 20.2 s",
        "with torch 2.14.1",
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 120


def test_repeated_rejects_are_counted():
    rows = [line for line in str(full_report()).splitlines() if "aten.nonzero.default" in line]
    assert len(rows) == 1
    assert " 37 " in rows[0]
    assert "nonzero_0 (model.py:0)" in rows[0]


def test_a_report_with_nothing_in_it():
    text = str(Report(model="m", device="cpu", backend="torch", precision="fp32", enabled_precisions=["fp32"]))
    assert "not verified (verify=False)" in text
    for title in ("segments", "candidates", "rejects", "built in", "note"):
        assert title not in text


def test_json_round_trip():
    report = full_report()
    assert Report.from_json(json.loads(json.dumps(report.as_json()))) == report


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("segments", 5),
        ("segments", [5]),
        ("segments", [{}]),
        ("parity", []),
        ("notes", [1]),
        ("phases_s", {"build": "x"}),
        ("model", None),
        ("versions", []),
    ],
)
def test_json_of_wrong_type(field, value):
    with pytest.raises(CorruptEngineFile, match="report"):
        Report.from_json({**full_report().as_json(), field: value})
