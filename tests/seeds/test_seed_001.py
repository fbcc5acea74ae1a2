"""The snippets of "Accelerating inference up to 6x faster in PyTorch with Torch-TensorRT", with the import changed.

The weights are random (``pretrained=True`` needs the network) and the runs few.
"""

# ruff: noqa: UP031 (the articles' own style)
from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.backends.cudnn as cudnn

import torchkiln as torch_tensorrt


def benchmark(model, device, input_shape=(1024, 3, 512, 512), dtype="fp32", nwarmup=50, nruns=1000):
    input_data = torch.randn(input_shape)
    input_data = input_data.to(device)
    if dtype == "fp16":
        input_data = input_data.half()

    print("Warm up ...")
    with torch.no_grad():
        for _ in range(nwarmup):
            features = model(input_data)
    if device == "cuda":
        torch.cuda.synchronize()
    print("Start timing ...")
    timings = []
    with torch.no_grad():
        for i in range(1, nruns + 1):
            start_time = time.time()
            features = model(input_data)
            if device == "cuda":
                torch.cuda.synchronize()
            end_time = time.time()
            timings.append(end_time - start_time)
            if i % 10 == 0:
                print("Iteration %d/%d, avg batch time %.2f ms" % (i, nruns, np.mean(timings) * 1000))

    print("Input shape:", input_data.size())
    print("Average throughput: %.2f images/second" % (input_shape[0] / np.mean(timings)))
    return input_data, features


@pytest.fixture(scope="module")
def efficientnet_b0():
    torch.manual_seed(0)
    return timm.create_model("efficientnet_b0", pretrained=False)


def test_the_article(efficientnet_b0, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cudnn.benchmark = True
    model = efficientnet_b0.eval().to(device)
    benchmark(model, device, input_shape=(1, 3, 224, 224), nwarmup=1, nruns=2)

    traced_model = torch.jit.trace(model, torch.randn((1, 3, 224, 224)).to(device))
    torch.jit.save(traced_model, tmp_path / "efficientnet_b0_traced.jit.pt")
    benchmark(traced_model, device, input_shape=(1, 3, 224, 224), nwarmup=1, nruns=2)

    trt_model = torch_tensorrt.compile(
        model,
        inputs=[torch_tensorrt.Input((1, 3, 224, 224))],
        enabled_precisions={torch_tensorrt.dtype.half},  # Run with FP16
    )
    input_data, features = benchmark(trt_model, device, input_shape=(1, 3, 224, 224), nwarmup=1, nruns=10, dtype="fp16")

    with torch.no_grad():
        expected = model(input_data.float())
    assert (features.float() - expected).norm() <= 1e-2 * expected.norm()
    assert "Average throughput" in capsys.readouterr().out
