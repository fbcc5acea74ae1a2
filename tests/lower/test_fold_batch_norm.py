import pytest
import torch
from torch import nn

from torchkiln.lower.fold_batch_norm import fold_batch_norm

LAYERS = {
    "conv1d": (nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), (2, 3, 11)),
    "conv1d without bias, stride and dilation": (nn.Conv1d(3, 5, 3, stride=2, dilation=2, padding=1, bias=False), nn.BatchNorm1d(5), (3, 3, 17)),
    "conv2d": (nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), (2, 3, 9, 13)),
    "conv2d, groups": (nn.Conv2d(6, 9, (3, 1), groups=3, stride=(2, 1), bias=False), nn.BatchNorm2d(9), (3, 6, 7, 5)),
    "conv2d, depthwise": (nn.Conv2d(5, 5, 3, groups=5, padding=1), nn.BatchNorm2d(5, affine=False), (1, 5, 6, 7)),
    "conv2d, same padding": (nn.Conv2d(3, 4, 4, padding="same"), nn.BatchNorm2d(4, eps=1e-2), (2, 3, 9, 8)),
    "conv3d": (nn.Conv3d(2, 5, 3, bias=False), nn.BatchNorm3d(5), (2, 2, 5, 6, 7)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), (2, 4, 5)),
    "transposed 2d, groups": (nn.ConvTranspose2d(6, 9, 3, stride=2, padding=1, output_padding=1, groups=3), nn.BatchNorm2d(9), (3, 6, 5, 4)),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2, bias=False), nn.BatchNorm3d(3), (1, 2, 3, 4, 5)),
    "linear": (nn.Linear(7, 5), nn.BatchNorm1d(5), (3, 7)),
    "linear without bias": (nn.Linear(7, 5, bias=False), nn.BatchNorm1d(5, affine=False), (5, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_folds_after(lowering, name):
    layer, norm, shape = LAYERS[name]
    model = lowering.randomize(nn.Sequential(layer, norm, nn.ReLU()))
    graph_module = lowering.capture(model, torch.randn(shape))
    assert fold_batch_norm(graph_module) == 1
    assert not any("batch_norm" in op for op in lowering.ops(graph_module))
    lowering.check_equal(graph_module, model, torch.randn(shape))


def test_folds_with_dynamic_batch(lowering):
    model = lowering.randomize(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4)))
    graph_module = lowering.capture_dynamic_batch(model, torch.randn(4, 3, 7, 9))
    assert fold_batch_norm(graph_module) == 2
    for batch in (1, 3, 7):
        lowering.check_equal(graph_module, model, torch.randn(batch, 3, 7, 9))


BEFORE = {
    "conv1d": (nn.BatchNorm1d(3), nn.Conv1d(3, 5, 3), (2, 3, 11)),
    "conv2d, groups, strided": (nn.BatchNorm2d(6), nn.Conv2d(6, 9, 3, groups=3, stride=2, bias=False), (3, 6, 7, 5)),
    "conv3d": (nn.BatchNorm3d(2), nn.Conv3d(2, 3, 2), (1, 2, 3, 4, 5)),
    "linear": (nn.BatchNorm1d(7), nn.Linear(7, 5), (3, 7)),
}


@pytest.mark.parametrize("name", BEFORE)
def test_folds_before(lowering, name):
    norm, layer, shape = BEFORE[name]
    model = lowering.randomize(nn.Sequential(nn.Identity(), norm, layer))
    graph_module = lowering.capture(model, torch.randn(shape))
    assert fold_batch_norm(graph_module) == 1
    lowering.check_equal(graph_module, model, torch.randn(shape))


def test_folds_both_sides(lowering):
    model = lowering.randomize(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    graph_module = lowering.capture(model, torch.randn(2, 3, 5, 6))
    assert fold_batch_norm(graph_module) == 2
    lowering.check_equal(graph_module, model, torch.randn(2, 3, 5, 6))


class SharedConv(nn.Module):
    """One convolution called twice, each time with another batch norm: the weights fold apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.b(self.conv(self.a(self.conv(x))))


def test_folds_shared_weights_apart(lowering):
    model = lowering.randomize(SharedConv())
    graph_module = lowering.capture(model, torch.randn(2, 3, 5, 6))
    assert fold_batch_norm(graph_module) == 2
    lowering.check_equal(graph_module, model, torch.randn(2, 3, 5, 6))


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class WeightFromInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(nn.functional.conv2d(x, x[:1, :, :2, :2].expand(4, -1, -1, -1)))


class LinearOverTime(nn.Module):
    """The batch norm's channel is dimension 1, the linear's the last."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.linear(x))


UNTOUCHED = {
    "convolution read twice": (ReadTwice(), (2, 3, 5, 6)),
    "weights depend on an input": (WeightFromInput(), (2, 3, 5, 6)),
    "linear over 3-D": (LinearOverTime(), (2, 5, 5)),
    "batch norm after relu, before padding": (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), (2, 3, 5, 6)),
    "batch norm before a transposed convolution": (nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 3)), (2, 3, 5, 6)),
    "statistics of the batch": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), (2, 3, 5, 6)),
    "instance norm": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)), (2, 3, 5, 6)),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_leaves_alone(lowering, name):
    model, shape = UNTOUCHED[name]
    model = lowering.randomize(model)
    graph_module = lowering.capture(model, torch.randn(shape))
    before = lowering.ops(graph_module)
    assert fold_batch_norm(graph_module) == 0
    assert lowering.ops(graph_module) == before
    lowering.check_equal(graph_module, model, torch.randn(shape))


def test_half_precision_keeps_the_dtype_of_weights(lowering):
    model = lowering.randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(torch.bfloat16)
    x = torch.randn(2, 3, 5, 6, dtype=torch.bfloat16)
    graph_module = lowering.capture(model, x)
    assert fold_batch_norm(graph_module) == 1
    lowering.check_equal(graph_module, model, x, tolerance=1e-2)
