"""The snippets of "4 times faster image segmentation with TRTorch", with the import changed and torchkiln's load and save for torch.jit's."""

# ruff: noqa: C408 (the articles' own style)
from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torchvision

import torchkiln as trtorch

RESOLUTION = 160  # the lowest of the article's chart; its snippets say 320, which takes four times as long
RUNS = 2


def benchmark(model, resolution, dtype, device):
    dummy_input = torch.ones((1, 3, resolution, resolution), dtype=dtype, device=device)
    # Warm up runs to prepare Cudnn Benchmark
    for _warm_up_iter in range(RUNS):
        prediction = model(dummy_input)

    # Benchmark
    with torch.no_grad():
        durations = list()
        for _i in range(RUNS):
            start = time.time()
            prediction = model(dummy_input)
            if device == "cuda":
                torch.cuda.synchronize()
            end = time.time()
            durations.append(end - start)
    assert prediction.dtype == dtype
    return min(durations)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = torchvision.models.resnet101()
    net.eval()
    return net


@pytest.fixture(scope="module")
def traced_model(net):
    dummy_input = torch.randn((1, 3, RESOLUTION, RESOLUTION))
    return torch.jit.trace(net, dummy_input)


def test_fp32(net, traced_model, device: str, tmp_path: Path) -> None:
    net.to(device), traced_model.to(device)
    trtorch_settings = {
        "inputs": [
            trtorch.Input(
                min_shape=[1, 3, RESOLUTION, RESOLUTION],
                opt_shape=[1, 3, RESOLUTION, RESOLUTION],
                max_shape=[1, 3, RESOLUTION, RESOLUTION],
                dtype=torch.float,
            )
        ],
        "enabled_precisions": {torch.float},
        "debug": True,
    }
    trtorch_model = trtorch.compile(traced_model, trtorch_settings)
    trtorch.save(trtorch_model, tmp_path / "my_trtorch_model.ts")

    my_compiled_model = trtorch.load(tmp_path / "my_trtorch_model.ts", trusted=True)
    dummy_input = torch.randn((1, 3, RESOLUTION, RESOLUTION)).to(device)
    dummy_prediction = my_compiled_model(dummy_input)

    with torch.no_grad():
        expected = net(dummy_input)
    assert (dummy_prediction - expected).norm() <= 1e-4 * expected.norm()
    benchmark(my_compiled_model, RESOLUTION, torch.float, device)


def test_fp16(net, traced_model, device: str) -> None:
    net.to(device), traced_model.to(device)
    trtorch_settings = {
        "inputs": [
            trtorch.Input(
                min_shape=[1, 3, RESOLUTION, RESOLUTION],
                opt_shape=[1, 3, RESOLUTION, RESOLUTION],
                max_shape=[1, 3, RESOLUTION, RESOLUTION],
                dtype=torch.half,
            )
        ],
        "enabled_precisions": {torch.half},
        "debug": True,
    }
    trtorch_model = trtorch.compile(traced_model, trtorch_settings)
    dummy_input = torch.randn((1, 3, RESOLUTION, RESOLUTION)).half().to(device)
    with torch.no_grad():
        expected = net(dummy_input.float())
    assert (trtorch_model(dummy_input).float() - expected).norm() <= 1e-2 * expected.norm()
