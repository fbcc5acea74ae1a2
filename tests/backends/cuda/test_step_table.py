"""The step table as pure functions of a plan, times and a roofline; and what is remembered of a GPU's limits."""

from __future__ import annotations

import dataclasses
import json

import pytest

from torchkiln.backends.cuda.plan import Bundle, KernelStep, Plan, Step, StepInfo, encode_bundle
from torchkiln.backends.cuda.roofline import Roofline, remembered
from torchkiln.backends.cuda.step_table import TORCH, arithmetic_of, pick_plan, read_bundle, rows_of
from torchkiln.errors import CorruptEngineFile, UserError

#: 1 GB/s and 1 TFLOP/s: a microsecond for 1000 bytes, and for a million operations.
ROOFLINE = Roofline(1e9, {"float16": 1e12, "tf32": 2e12})

CONV = StepInfo("stem: conv+relu", "conv", "conv_gemm", {"block": 64}, (1, 8, 4, 4), "float16", 2000, 8_000_000, 10.0)
ADD = StepInfo("add", "add", "pointwise", {}, (8,), "float16", 3000, 0, 6.0)
SORT = StepInfo("sort", "aten.sort.default", "torch", {}, (8,), "int64", 4000, 0, None)


def plan_of(infos, owners):
    steps = [Step(KernelStep(0, (1, 1, 1), ()), owner) for owner in owners]
    return Plan((), (), (), [], steps, list(infos), [], arena_bytes=256, tensor_bytes=1024, counters=0)


def bundle_of(*infos, owners=(0,), sizes=()):
    return Bundle([plan_of(infos, owners)] * max(len(sizes), 1), [], {"gpu": "H200"}, sizes)


def test_rows_of_measured_times():
    conv, add = rows_of(plan_of([CONV, ADD], [0, 0, 1]), [10.0, 6.0, 4.0], ROOFLINE)
    assert (conv.steps, conv.median_us, add.steps, add.median_us) == ((0, 1), 16.0, (2,), 4.0)
    assert conv.bytes_per_s == pytest.approx(2000 / 16e-6)
    assert conv.flops_per_s == pytest.approx(8e6 / 16e-6)
    assert conv.roofline_share == pytest.approx(8 / 16)  # 8 us of operations, 2 us of bytes
    assert add.roofline_share == pytest.approx(3 / 4)
    assert (conv.total_share, add.total_share) == (0.8, 0.2)


def test_rows_of_stored_times():
    conv, add, sort = rows_of(plan_of([CONV, ADD, SORT], [0, 1, 2]), None, None)
    assert (conv.median_us, add.median_us, sort.median_us) == (10.0, 6.0, None)
    assert (conv.total_share, sort.total_share, sort.bytes_per_s, sort.roofline_share) == (0.625, None, None, None)
    assert conv.roofline_share is None


def test_steps_of_an_operation_that_do_not_follow_each_other():
    assert [row.steps for row in rows_of(plan_of([CONV, ADD], [1, 0, 1]), [1.0, 2.0, 3.0], None)] == [(0, 2), (1,)]


def test_streams_of_an_operation():
    plan = plan_of([CONV, ADD], [0, 1, 0])
    plan.steps = [dataclasses.replace(step, stream=stream) for step, stream in zip(plan.steps, (2, 0, 0), strict=True)]
    assert [row.streams for row in rows_of(plan, None, None)] == [(0, 2), (0,)]


def test_operations_without_steps_or_time():
    assert rows_of(plan_of([CONV], []), [], ROOFLINE) == []
    (row,) = rows_of(plan_of([CONV], [0]), [0.0], ROOFLINE)
    assert (row.median_us, row.bytes_per_s, row.roofline_share, row.total_share) == (0.0, None, None, None)


def test_arithmetic():
    wide = dataclasses.replace(CONV, dtype="float32", math="tf32")
    assert [arithmetic_of(info) for info in (CONV, wide, dataclasses.replace(wide, math="ieee"))] == ["float16", "tf32", "float32"]
    assert ROOFLINE.time_us(0, 8_000_000, "tf32") == pytest.approx(4)
    assert ROOFLINE.time_us(5000, 8_000_000, "float32") is None
    assert ROOFLINE.time_us(5000, 0, "int64") == pytest.approx(5)


def test_torch_is_the_registrys_name():
    from torchkiln.backends.cuda.tactics import registry

    assert registry.TORCH == TORCH


def test_which_plan():
    bundle = bundle_of(CONV, sizes=(1, 4, 16))
    assert [pick_plan(bundle, *which, "s") for which in [(None, 4), (None, 3), (None, None), (1, 4)]] == [1, 2, 2, 0]
    with pytest.raises(UserError, match=r"--batch 3: s has no plan .* 1, 4, 16"):
        pick_plan(bundle, 3, 4, "s")
    assert pick_plan(bundle_of(CONV), None, 4, "s") == 0
    with pytest.raises(UserError, match="fixed shapes"):
        pick_plan(bundle_of(CONV), 4, None, "s")


def test_bundles_are_checked():
    assert read_bundle(encode_bundle(bundle_of(CONV)), "s").plans[0].infos == [CONV]
    for wrong in ({"median_us": "1"}, {"label": 3}, {"bytes": 1.5}, {"shape": ("a",)}):
        with pytest.raises(CorruptEngineFile, match=f"^s: a step's {next(iter(wrong))}"):
            read_bundle(encode_bundle(bundle_of(dataclasses.replace(CONV, **wrong))), "s")
    for owner in (1, -1):
        with pytest.raises(CorruptEngineFile, match="belongs to none"):
            read_bundle(encode_bundle(bundle_of(CONV, owners=(owner,))), "s")
    missing = bundle_of(CONV, sizes=(1, 2))
    missing.plans.pop()
    with pytest.raises(CorruptEngineFile, match="a plan for each of 2"):
        read_bundle(encode_bundle(missing), "s")


class Measured:
    """Counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return Roofline(float(self.calls), {"float16": 2.0})


def test_a_roofline_is_measured_once_a_gpu(tmp_path):
    path, measure = tmp_path / "new" / "roofline.json", Measured()
    assert [remembered(path, name, measure).bytes_per_s for name in ("a", "b", "a", "b")] == [1.0, 2.0, 1.0, 2.0]
    assert remembered(None, "a", measure).bytes_per_s == 3.0


@pytest.mark.parametrize(
    "entry", [3, {"bytes_per_s": 1.0}, {"bytes_per_s": -1.0, "flops_per_s": {}}, {"bytes_per_s": 1.0, "flops_per_s": {"x": 1.0}}]
)
def test_a_damaged_entry_is_measured_again(tmp_path, entry):
    path, measure = tmp_path / "roofline.json", Measured()
    path.write_text(json.dumps({"a": entry}))
    assert remembered(path, "a", measure) == remembered(path, "a", measure) == Roofline(1.0, {"float16": 2.0})
    assert measure.calls == 1


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_file_is_replaced(tmp_path, content):
    path, measure = tmp_path / "roofline.json", Measured()
    path.write_text(content)
    remembered(path, "a", measure)
    assert json.loads(path.read_text()).keys() == {"a"}


def test_a_file_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert remembered(tmp_path / "file" / "roofline.json", "a", Measured()).bytes_per_s == 1.0


@pytest.mark.cuda
def test_roofline_of_this_gpu(tmp_path, monkeypatch):
    import torch

    from torchkiln.backends.cuda.roofline import FILE_NAME, measure_roofline

    monkeypatch.setenv("TORCHKILN_CACHE", str(tmp_path))
    first = measure_roofline(torch.device("cuda", 0))
    assert first.bytes_per_s > 1e10
    assert first.flops_per_s["float16"] > first.flops_per_s["float32"] > 1e11
    assert measure_roofline(torch.device("cuda", 0)) == first
    assert (tmp_path / FILE_NAME).is_file()
