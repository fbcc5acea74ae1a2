"""Layer norms between linear layers: gone where only linear layers read them, with the numbers as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkiln.backends.cuda.passes.fuse_layer_norm import fuse_layer_norm
from torchkiln.backends.cuda.passes.pipeline import fuse

from .fusion import calls, check


class Net(nn.Module):
    def __init__(self, core, channels=128):
        super().__init__()
        self.core = core
        self.first, self.other = nn.Linear(24, channels), nn.Linear(24, channels)
        self.second, self.third = nn.Linear(channels, 40), nn.Linear(channels, 48)
        self.norm = nn.LayerNorm(channels)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        return self.core(self, x)


def test_between_two_layers():
    after = check(Net(lambda net, x: net.second(net.norm(net.first(x))).relu()), (3, 7, 24), run=fuse, precision=torch.float16)
    assert not calls(after, "layer_norm")
    assert len(calls(after, "linear_moments")) == len(calls(after, "linear_normalized")) == 1


def test_two_readers_and_a_residual():
    """The sum goes on beside the norm, as in a transformer, and two layers read the norm, one of them with the sequence first."""

    def core(net, x):
        y = net.other(x).relu() + net.first(x)
        n = net.norm(y)
        return net.second(n), net.third(n.transpose(0, 1)), y

    after = check(Net(core), (3, 7, 24), run=fuse, precision=torch.float16)
    assert not calls(after, "layer_norm")
    assert len(calls(after, "linear_normalized")) == 2


def test_two_norms_of_one_sum_share_its_moments():
    def core(net, x):
        y = net.first(x)
        return net.second(net.norm(y)), net.third(nn.functional.layer_norm(y, (128,))), y

    after = check(Net(core), (3, 7, 24), run=fuse, precision=torch.float16)
    assert len(calls(after, "linear_moments")) == 1
    assert len(calls(after, "linear_normalized")) == 2


@pytest.mark.parametrize(
    ("core", "precision", "reason"),
    [
        (lambda net, x: (lambda n: (net.second(n), n.relu()))(net.norm(net.first(x))), torch.float16, "which is no linear layer"),
        (lambda net, x: net.second(net.norm(net.first(x).cos())), torch.float16, "is not the result of a linear layer"),
        (lambda net, x: net.second(net.norm(net.first(x))), None, "only halves"),
        (lambda net, x: net.second(nn.functional.layer_norm(net.first(x), (7, 128))), torch.float16, "not over the last dimension"),
    ],
)
def test_left_alone(core, precision, reason):
    after = check(Net(core), (3, 7, 24), run=fuse, precision=precision)
    assert calls(after, "layer_norm")
    assert any(reason in text for _, text in after.meta["rejects"])


@pytest.mark.parametrize("channels", [96, 136, 2080])
def test_numbers_of_channels_that_stay(channels):
    after = check(Net(lambda net, x: net.second(net.norm(net.first(x))), channels), (2, 3, 24), run=fuse, precision=torch.float16)
    assert calls(after, "layer_norm")
    assert any(f"rows of {channels} channels" in text for _, text in after.meta["rejects"])


def test_nothing_to_do():
    assert fuse_layer_norm(check(nn.Linear(24, 8), (2, 24), run=fuse)) == 0
