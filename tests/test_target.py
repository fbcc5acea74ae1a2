"""Targets: names, what this machine has, and what is built together."""

from __future__ import annotations

import pytest
import torch

from torchkiln.errors import UserError
from torchkiln.target import Target, canonical_name, group_targets, parse_names, parse_target

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "name"),
    [("sm_89", "sm_89"), ("SM89", "sm_89"), ("8.9", "sm_89"), ("12.0", "sm_120"), ("sm120", "sm_120"), (" cpu ", "cpu"), ("Current", "current")],
)
def test_names(text, name):
    assert canonical_name(text) == name


@pytest.mark.parametrize("text", ["", "sm", "sm_8", "sm_1234", "89", "gpu", "cuda", "sm_8x", "8.9.1", "sm_089", "sm_00", "sm_\u0668\u0669"])
def test_a_name_that_is_none(text):
    with pytest.raises(UserError, match="expected 'cpu', 'current' or a compute capability as 'sm_89'"):
        canonical_name(text)


def test_lists_of_names():
    assert parse_names(None) == ()
    assert parse_names("sm_86,cpu, SM86") == ("sm_86", "cpu")
    assert parse_names([Target("sm_120"), "8.9"]) == ("sm_120", "sm_89")
    for value in ([89], 89, b"cpu", torch.device("cpu"), [torch.device("cpu")]):
        with pytest.raises(UserError, match="expected 'cpu', 'current' or a compute capability as 'sm_89'"):
            parse_names(value)


def test_what_a_target_is():
    assert Target("sm_89").compute_capability == (8, 9)
    assert Target("sm_120").compute_capability == (12, 0)
    assert Target("sm_80+").compute_capability == (8, 0)
    assert Target("sm_89").device_type == "cuda"
    assert not Target("sm_89").is_here
    cpu = Target.of(CPU)
    assert (cpu.name, cpu.device_type, cpu.compute_capability, cpu.is_here) == ("cpu", "cpu", None, True)
    assert parse_target("current", CPU) == cpu == parse_target("cpu", torch.device("meta"))


def test_the_gpus_of_this_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: {0: (9, 0), 1: (8, 6)}[device.index])
    assert parse_target("sm_86") == Target("sm_86", torch.device("cuda", 1))
    assert parse_target("current", torch.device("cuda", 0)).name == "sm_90"
    assert not parse_target("sm_89").is_here
    groups = group_targets(("sm_89", "current", "cpu", "sm_120", "sm_90"), torch.device("cuda", 0))
    assert [(g.name, str(g.device)) for g in groups] == [("cuda:0", "cuda:0"), ("cpu", "cpu"), ("sm_89, sm_120", "cpu")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(UserError, match="no usable GPU: name a target"):
        Target.of(torch.device("cuda"))


def test_groups():
    (group,) = group_targets(("current", "cpu"), CPU)
    assert group.targets == (Target.of(CPU),)
    names = [group.name for group in group_targets(("sm_75", "cpu", "sm_89"), CPU)]
    assert names == ["cpu", "sm_75, sm_89"]
