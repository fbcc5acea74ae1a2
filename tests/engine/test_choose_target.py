"""choose_target: what of an engine runs on which machine. GPUs are pretended."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import torchkiln
from torchkiln.engine.choose_target import choose_target, describe_targets, fits, pick_target
from torchkiln.engine.engine import Engine
from torchkiln.engine.file import read_engine_file, write_engine_file
from torchkiln.errors import TargetMismatch, UserError
from torchkiln.target import Target

from .tiny_engine import call, tiny_contents


def held_for(*targets: str):
    device = "cpu" if targets == ("cpu",) else "cuda"
    contents = replace(tiny_contents(), targets=targets, device=device)
    contents.report.model = "torchvision:tiny"
    contents.report.backend, contents.report.precision = ("openvino", "bf16") if device == "cpu" else ("tensorrt", "fp16")
    return contents


CPU, ADA, HOPPER = held_for("cpu"), held_for("sm_86", "sm_89"), held_for("sm_90")


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that the machine has one GPU of that compute capability; (0, 0): none."""

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: major > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(major > 0))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA Pretended {major}{minor}")

    return pretend


def test_the_gpus_own_contents_come_first(gpu):
    gpu(8, 9)
    choice = choose_target([CPU, ADA, HOPPER])
    assert choice.contents is ADA
    assert (str(choice.device), choice.is_second_best) == ("cuda:0", False)
    assert "sm_89" in choice.reason
    gpu(9, 0)
    assert choose_target([CPU, ADA, HOPPER]).contents is HOPPER


def test_without_a_gpu(gpu):
    gpu(0, 0)
    choice = choose_target([ADA, CPU])
    assert (choice.contents, str(choice.device), choice.reason) == (CPU, "cpu", "this machine has no GPU")


def test_a_gpu_that_nothing_fits_is_said(gpu):
    gpu(7, 5)
    choice = choose_target([ADA, CPU])
    assert choice.contents is CPU
    assert choice.is_second_best
    assert "NVIDIA Pretended 75 (sm_75); it holds sm_86, sm_89 (tensorrt fp16); cpu (openvino bf16)" in choice.reason
    with pytest.warns(UserWarning, match=r"running on the CPU: nothing in the engine fits .*sm_75"):
        engine = Engine([ADA, CPU])
    assert engine.device == torch.device("cpu")


def test_asked_for_the_cpu(gpu):
    gpu(8, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = Engine([ADA, CPU], "cpu")
    assert (engine.device.type, engine.target_note) == ("cpu", "asked for")
    with pytest.raises(TargetMismatch, match="asked to load on cpu; the engine holds sm_86, sm_89"):
        choose_target([ADA], "cpu")


@pytest.mark.parametrize(("capability", "device", "expected"), [((9, 0), None, "sm_90"), ((9, 0), "cuda", "sm_90"), ((0, 0), None, "cpu")])
def test_nothing_fits(gpu, capability, device, expected):
    gpu(*capability)
    with pytest.raises(TargetMismatch) as caught:
        choose_target([ADA], device)
    message = str(caught.value)
    assert "the engine holds sm_86, sm_89 (tensorrt fp16)" in message
    assert f"torchkiln compile torchvision:tiny --target {expected} -o {expected}.kiln" in message
    assert ("NVIDIA Pretended 90" in message) == (capability != (0, 0))


def test_a_gpu_number_that_is_not_there(gpu):
    gpu(8, 9)
    with pytest.raises(TargetMismatch, match="asked to load on cuda:3, but this machine has 1 GPUs"):
        choose_target([ADA], "cuda:3")
    with pytest.raises(UserError, match="expected a torch device"):
        choose_target([ADA], "warp")


def test_a_device_that_is_not_here(gpu):
    gpu(0, 0)
    for device in ("cuda", "meta"):
        with pytest.raises(TargetMismatch, match=f"asked to load on {device}, but this machine has no such device; .* Leave device out"):
            choose_target([CPU, ADA], device)


def test_the_gpus_very_own_build_comes_before_one_that_merely_runs(gpu):
    gpu(8, 9)
    ampere = held_for("sm_80+")
    for held in ([ampere, ADA], [ADA, ampere]):
        assert choose_target(held).contents is ADA
    assert choose_target([ampere, HOPPER]).contents is ampere


def test_fits():
    assert fits("sm_80+", Target("sm_120"))
    assert fits("sm_80+", Target("sm_80"))
    assert not fits("sm_89+", Target("sm_86"))
    assert not fits("sm_89", Target("sm_86"))
    assert not fits("sm_80+", Target("cpu"))


def test_pick():
    assert pick_target([CPU, ADA], "sm_89") is ADA
    assert pick_target([CPU, ADA], "8.6") is ADA
    assert pick_target([ADA], None) is ADA
    with pytest.raises(UserError, match=r"holds several targets, name one: cpu .*; sm_86, sm_89"):
        pick_target([CPU, ADA], None)
    with pytest.raises(UserError, match="holds nothing for sm_90"):
        pick_target([CPU, ADA], "sm_90")
    assert describe_targets([HOPPER]) == "sm_90 (tensorrt fp16)"


def test_an_engine_for_absent_gpus_can_be_saved_and_not_called(gpu, tmp_path):
    gpu(0, 0)
    engine = Engine([ADA], may_be_absent=True)
    assert engine.targets == ("sm_86", "sm_89")
    assert "not in this machine" in repr(engine)
    assert engine.report() is ADA.report
    with pytest.raises(TargetMismatch, match="no usable GPU; the engine holds"):
        call(engine)
    with pytest.raises(TargetMismatch, match="no usable GPU"):
        _ = engine.runners
    engine.save(tmp_path / "ada.kiln")
    with pytest.raises(TargetMismatch, match="Build what is missing"):
        torchkiln.load(tmp_path / "ada.kiln")


def test_load_reads_only_what_it_chose(gpu, tmp_path):
    gpu(0, 0)
    path = tmp_path / "both.kiln"
    ada = replace(ADA, segments=tuple(replace(s, artifact=replace(s.artifact)) for s in ADA.segments))
    ada.segments[0].artifact.native_code = True
    write_engine_file([ada, CPU], path)
    engine = torchkiln.load(path)  # the other target's native code asks for no trust
    assert engine.targets == ("cpu",)
    assert all(torch.equal(a, b) for a, b in zip(call(engine), call(Engine(CPU)), strict=True))
    assert [c.targets for c in read_engine_file(path, trusted=True)] == [("sm_86", "sm_89"), ("cpu",)]
