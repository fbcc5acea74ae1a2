"""MemoryProbe: it sees what calls need, and forgets what the build needed."""

import sys

import pytest
import torch

from torchkiln.bench.memory import MemoryProbe

MB = 1_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="the figure exists on Linux alone")
def test_the_peak_of_the_calls_and_not_of_the_build():
    probe = MemoryProbe(torch.device("cpu"))
    torch.ones(300 * MB // 4).sum()  # the build: touched, then freed
    probe.start_peak()
    kept = torch.ones(40 * MB // 4)
    passing = torch.ones(60 * MB // 4)
    del passing
    peak = probe.peak_bytes()
    assert peak is not None
    assert 90 * MB < peak < 200 * MB
    assert kept.numel() == 10 * MB


def test_a_device_without_figures_says_none():
    probe = MemoryProbe(torch.device("meta"))
    probe.start_peak()
    assert probe.peak_bytes() is None


@pytest.mark.cuda
def test_on_cuda_the_allocator_counts():
    probe = MemoryProbe(torch.device("cuda"))
    probe.start_peak()
    kept = torch.ones(8 * MB // 4, device="cuda")
    assert 8 * MB <= probe.peak_bytes() < 60 * MB
    assert kept.is_cuda
