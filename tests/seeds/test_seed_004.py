"""The snippets of "Torch TensorRT Benchmarking for ResNet34", with the import changed and torchkiln's load and save for torch.jit's.

The article's own ResNet34 (activation before batch norm, no batch norm on the shortcut), its arguments written as loops.
"""

# ruff: noqa: C408 (the articles' own style)
from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchkiln as torch_tensorrt

MAX_ITER = 2
BATCH_SIZE = 2
img_size = 224
input_shape = (BATCH_SIZE, 3, img_size, img_size)


class BasicBlock(nn.Module):
    def __init__(self, conv1, conv2, activation=nn.ReLU(), downsample=False):  # noqa: B008 (as in the article)
        super().__init__()
        self.Conv_1 = nn.Conv2d(**conv1)
        self.BN_1 = nn.BatchNorm2d(num_features=conv1["out_channels"])
        self.Conv_2 = nn.Conv2d(**conv2)
        self.BN_2 = nn.BatchNorm2d(num_features=conv1["out_channels"])
        self.downsample_flag = downsample
        self.downsample = nn.Conv2d(**conv1) if downsample else nn.Identity()
        self.activation = activation

    def forward(self, input_):
        input_copy = input_
        input_ = self.BN_1(self.activation(self.Conv_1(input_)))
        input_ = self.BN_2(self.activation(self.Conv_2(input_)))
        if self.downsample_flag:
            input_copy = self.activation(self.downsample(input_copy))
        return self.activation(input_ + input_copy)


class ResBlock(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        layers = []
        for block, config in blocks.items():
            self.__dict__[block] = BasicBlock(**config)
            layers.append(self.__dict__[block])
        self.layers = nn.Sequential(*layers)

    def forward(self, input_):
        for layer in self.layers:
            input_ = layer(input_)
        return input_


class ResNet34(nn.Module):
    def __init__(self, conv_1, maxpool_1, conv2_x, conv3_x, conv4_x, conv5_x, avgpool, final_layer, activation=nn.ReLU()):  # noqa: B008
        super(ResNet34, self).__init__()  # noqa: UP008
        self.activation = activation
        self.Conv_1 = nn.Conv2d(**conv_1)
        self.BN_1 = nn.BatchNorm2d(conv_1["out_channels"])
        self.MaxPool_1 = nn.MaxPool2d(**maxpool_1)
        self.Conv2_x = ResBlock(**conv2_x)
        self.Conv3_x = ResBlock(**conv3_x)
        self.Conv4_x = ResBlock(**conv4_x)
        self.Conv5_x = ResBlock(**conv5_x)
        self.AvgPool = nn.AvgPool2d(**avgpool)
        self.Final_layer = nn.Linear(**final_layer)

    def forward(self, input_):
        input_ = self.BN_1(self.activation(self.Conv_1(input_)))
        input_ = self.MaxPool_1(input_)
        input_ = self.Conv2_x(input_)
        input_ = self.Conv3_x(input_)
        input_ = self.Conv4_x(input_)
        input_ = self.Conv5_x(input_)
        input_ = self.AvgPool(input_)
        input_ = torch.flatten(input_, start_dim=1)
        return self.Final_layer(input_)


def stage(blocks: int, in_channels: int, out_channels: int) -> dict:
    """The arguments of one ResBlock: the first block halves the image where the channels grow."""
    configs = {}
    for n in range(blocks):
        first = in_channels if n == 0 else out_channels
        conv1 = dict(in_channels=first, out_channels=out_channels, kernel_size=3, padding=1)
        configs[f"Block{n + 1}"] = dict(conv1=conv1, conv2=dict(conv1, in_channels=out_channels))
        if first != out_channels:
            configs[f"Block{n + 1}"].update(conv1=dict(conv1, stride=2), downsample=True)
    return dict(blocks=configs)


resnet34_args = dict(
    conv_1=dict(in_channels=3, out_channels=64, stride=2, kernel_size=7, padding=3),
    maxpool_1=dict(kernel_size=3, stride=2, padding=1),
    conv2_x=stage(3, 64, 64),
    conv3_x=stage(4, 64, 128),
    conv4_x=stage(6, 128, 256),
    conv5_x=stage(3, 256, 512),
    avgpool=dict(kernel_size=2),
    final_layer=dict(in_features=4608, out_features=1000),
)


def benchmark(model, device, input_shape=(1024, 1, 32, 32), dtype="fp32", nwarmup=50, nruns=1000):
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
        for _i in range(1, nruns + 1):
            start_time = time.time()
            features = model(input_data)
            if device == "cuda":
                torch.cuda.synchronize()
            end_time = time.time()
            timings.append(end_time - start_time)

    print("Average batch time: %.2f ms" % (np.mean(timings) * 1000))
    return input_data, features


@pytest.fixture
def model(device: str):
    torch.manual_seed(0)
    model = ResNet34(**resnet34_args)
    model.to(device).eval()
    return model


@pytest.mark.parametrize("form", ["traced", "scripted"])
def test_the_article(form: str, model, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark(model, device, input_shape=input_shape, nwarmup=1, nruns=MAX_ITER)
    if form == "traced":
        script_model = torch.jit.trace(model, torch.randn(BATCH_SIZE, 3, img_size, img_size).to(device))
    else:
        script_model = torch.jit.script(model)
    benchmark(script_model, device, input_shape=input_shape, nwarmup=1, nruns=MAX_ITER)

    trt_ts = torch_tensorrt.compile(
        script_model,
        inputs=[
            torch_tensorrt.Input(
                min_shape=[1, 3, img_size, img_size],
                opt_shape=[BATCH_SIZE, 3, img_size, img_size],
                max_shape=[16, 3, img_size, img_size],
                dtype=torch.float,
            )
        ],
        enabled_precisions={torch.float},
    )
    input_data, features = benchmark(trt_ts, device, input_shape=input_shape, dtype="fp32", nwarmup=1, nruns=MAX_ITER)
    with torch.no_grad():
        expected = model(input_data)
    assert (features - expected).norm() <= 1e-4 * expected.norm()

    torch_tensorrt.save(trt_ts, tmp_path / "resnet34.ts")
    loaded = torch_tensorrt.load(tmp_path / "resnet34.ts", trusted=True)
    one = torch.randn(1, 3, img_size, img_size).to(device)  # the smallest of the range, as well as the one it was tuned for
    assert torch.equal(loaded(input_data), trt_ts(input_data))
    with torch.no_grad():
        assert (loaded(one) - model(one)).norm() <= 1e-4 * model(one).norm()
    assert capsys.readouterr().out.count("Average batch time") == 3
