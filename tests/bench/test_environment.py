"""describe_environment: JSON values, true ones."""

import json
import os
import sys

import torch

from torchkiln.bench import environment
from torchkiln.bench.environment import command_line, describe_cpu, describe_environment, describe_gpus


def test_it_is_json_and_says_what_decides_the_figures():
    described = describe_environment(torch.device("cpu"), 3)
    assert json.loads(json.dumps(described)) == described
    assert described["num_threads"] == 3
    assert described["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert described["gpus"] == []
    assert described["memory_bytes"] > 10**8
    assert described["date"].endswith("+00:00")


def test_the_cpu():
    cpu = describe_cpu()
    assert cpu["model"]
    assert 1 <= cpu["usable_cores"] <= cpu["logical_cores"] == os.cpu_count()


def test_isa_flags_are_read_whole(monkeypatch):
    monkeypatch.setattr(environment, "_cpuinfo", lambda: {"model name": "X", "flags": "fpu avx2 amx_bf16 avx512_vnni_not"})
    assert describe_cpu()["isa"] == ["avx2", "amx_bf16"]


def test_gpus_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert describe_gpus() == []


def test_the_command_has_no_folder(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/secret/bin/torchkiln", "bench", "torchvision:resnet34", "--report", "a b"])
    assert command_line() == "torchkiln bench torchvision:resnet34 --report 'a b'"
