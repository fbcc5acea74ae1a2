"""fuse_conv: convolutions with what follows them, what is refused, and that the numbers stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchkiln.backends.cuda.passes.fuse_conv import fuse_conv

from .fusion import calls, check, check_each, ops, rejects

ACTIVATIONS = {
    "relu": (torch.relu, 0.0),
    "relu6": (F.relu6, 0.0),
    "silu": (F.silu, 0.0),
    "gelu": (F.gelu, 0.0),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), 0.0),
    "hardswish": (F.hardswish, 0.0),
    "hardsigmoid": (F.hardsigmoid, 0.0),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), 0.2),
    "sigmoid": (torch.sigmoid, 0.0),
    "tanh": (torch.tanh, 0.0),
}
CLAMPS = {
    "relu6 of clamp": (lambda x: x.clamp(0, 6), "relu6"),
    "relu of clamp": (lambda x: x.clamp(min=0), "relu"),
    "leaky_relu by default": (F.leaky_relu, "leaky_relu"),
}
OTHERS = {"elu": F.elu, "mish": F.mish, "hardtanh": F.hardtanh, "clamp": lambda x: x.clamp(0, 5), "softplus": F.softplus}


class Net(nn.Module):
    """Two convolutions of the same shape, handed to ``core(x, a, b)``: the first layer widens the input beyond the few channels of an image."""

    def __init__(self, core, dims=2):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.core = core
        self.stem, self.a, self.b = conv(5, 20, 3), conv(20, 20, 3, padding=1), conv(20, 20, 3, padding=1, bias=False)

    def forward(self, x):
        return self.core(self.stem(x), self.a, self.b)


def fused(core, *, precision=None, shape=(2, 5, 9, 11), channels_last=False):
    torch.manual_seed(0)
    model = Net(core, len(shape) - 2)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return check(model, shape, run=fuse_conv, precision=precision, channels_last=channels_last)


def fused_each(core, shape=(2, 5, 9, 11)):
    torch.manual_seed(0)
    return check_each(Net(core, len(shape) - 2), shape, run=fuse_conv)


def epilogues(after):
    """(has a residual, activation) of each convolution after the stem."""
    return [(node.args[3] is not None, node.args[11]) for node in calls(after, "conv")[1:]]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    function, alpha = ACTIVATIONS[name]
    for precision, after in fused_each(lambda x, a, b: function(a(x))):
        assert epilogues(after) == [(False, name)]
        assert calls(after, "conv")[1].args[12] == alpha
        assert ops(after) == {"conv": 2} | ({"_to_copy": 1} if precision else {})  # of the output


@pytest.mark.parametrize("case", CLAMPS)
def test_activations_by_other_names(case):
    function, name = CLAMPS[case]
    assert epilogues(fused(lambda x, a, b: function(a(x)))) == [(False, name)]


@pytest.mark.parametrize("name", OTHERS)
def test_other_activations_stay(name):
    after = fused(lambda x, a, b: OTHERS[name](a(x)))
    assert epilogues(after) == [(False, "none")]
    assert sum(ops(after).values()) > 2


@pytest.mark.parametrize("shape", [(2, 5, 9), (2, 5, 9, 11), (1, 5, 7, 5, 6)])
@pytest.mark.parametrize("is_first", [False, True])
def test_residual_then_activation(is_first, shape):
    for _, after in fused_each(lambda x, a, b: torch.relu(a(x) + x if is_first else x + a(x)), shape):
        assert epilogues(after) == [(True, "relu")]
        assert calls(after, "conv")[1].args[3] is calls(after, "conv")[0]
        assert ops(after)["conv"] == 2
        assert not ops(after).keys() & {"add", "relu", "convolution"}


@pytest.mark.parametrize("precision", [None, torch.float16])
def test_channels_last(precision):
    after = fused(lambda x, a, b: torch.relu(b(a(x)) + x).flatten(1), precision=precision, channels_last=True)
    assert epilogues(after) == [(False, "none"), (True, "relu")]


@pytest.mark.parametrize("is_first", [False, True])
def test_of_two_convolutions_the_later_takes_the_other(is_first):
    def core(x, a, b):
        early, late = a(x), b(x)
        return torch.relu(late + early if is_first else early + late)

    after = fused(core)
    assert epilogues(after) == [(False, "none"), (True, "relu")]
    early, late = calls(after, "conv")[1:]
    assert late.args[3] is early


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("kernel", [1, 2])
def test_of_two_convolutions_the_matrix_product_takes_the_other(is_first, kernel):
    """As at the end of a bottleneck with a projection of its input, which has a stride and comes later."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow = torch.nn.Conv2d(5, 4, 3, stride=2, padding=1)
            self.wide = torch.nn.Conv2d(4, 7, 1)
            self.project = torch.nn.Conv2d(5, 7, kernel, stride=2)

        def forward(self, x):
            y = self.wide(self.narrow(x))
            other = self.project(x)
            return torch.relu(y + other if is_first else other + y)

    after = check(Block(), (2, 5, 8, 10), run=fuse_conv)
    (wide,) = (node for node in calls(after, "conv") if node.args[3] is not None)
    assert wide.args[1].meta["val"].shape == (7, 4, 1, 1)
    assert wide.args[3].args[1].meta["val"].shape == (7, 5, kernel, kernel)


def test_convolution_before_the_other_addend_moves_to_the_addition():
    after = fused(lambda x, a, b: a(x) + torch.exp(x))
    assert epilogues(after) == [(True, "none")]
    assert calls(after, "conv")[1].args[3].target is torch.ops.aten.exp.default


def test_activation_before_the_addition():
    after = fused(lambda x, a, b: F.silu(a(x)) + x)
    assert epilogues(after) == [(False, "silu")]
    assert ops(after) == {"conv": 2, "add": 1}


def test_only_one_addition():
    after = fused(lambda x, a, b: torch.relu(a(x) + x + torch.exp(x)))
    assert epilogues(after) == [(True, "none")]
    assert ops(after) == {"conv": 2, "exp": 1, "add": 1, "relu": 1}


REFUSED = {
    "users of an activation": (lambda x, a, b: (lambda y: (torch.relu(y), y.mean()))(a(x)), (False, "none"), "users"),
    "users of an addition": (lambda x, a, b: (lambda y: (y + x, y.mean()))(a(x)), (False, "none"), "users"),
    "users between": (lambda x, a, b: (lambda y: (torch.relu(y), y.mean()))(a(x) + x), (True, "none"), "users"),
    "output": (lambda x, a, b: (lambda y: (torch.relu(y), y))(a(x)), (False, "none"), "users"),
    "broadcast": (lambda x, a, b: a(x) + x.mean((2, 3), keepdim=True), (False, "none"), "broadcasts"),
    "broadcast itself": (lambda x, a, b: a(x[:, :, :1, :1]) + x, (False, "none"), "broadcasts"),
    "number": (lambda x, a, b: a(x) + 3.0, (False, "none"), "broadcasts"),
    "alpha": (lambda x, a, b: torch.add(a(x), x, alpha=2.0), (False, "none"), "scales"),
    "twice": (lambda x, a, b: (lambda y: y + y)(a(x)), (False, "none"), ""),
    "dtype": (lambda x, a, b: a(x) + x.double(), (False, "none"), "adds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    core, epilogue, reason = REFUSED[case]
    after = fused(core)
    assert epilogues(after) == [epilogue]
    assert reason in rejects(after)


def test_transposed_and_grouped():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(18, 12, 3, 2, 1, output_padding=1, groups=3, dilation=1)
            self.group = nn.Conv2d(12, 24, (3, 5), (2, 1), (2, 4), (2, 3), groups=4, bias=False)

        def forward(self, x):
            return F.leaky_relu(self.group(torch.relu(self.up(x))))

    after = check(Model(), (2, 18, 5, 7), run=fuse_conv)
    assert ops(after) == {"conv": 2}
    up, group = calls(after, "conv")
    assert (up.args[8], up.args[9], up.args[10], up.args[11]) == (True, [1, 1], 3, "relu")
    assert (group.args[2], group.args[5:8], group.args[11:]) == (None, ([2, 1], [2, 4], [2, 3]), ("leaky_relu", 0.01))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_cast_of_the_input(precision):
    after = check(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (2, 3, 9, 11), run=fuse_conv, precision=precision)
    (conv,) = calls(after, "conv")
    assert conv.args[0].op == "placeholder"
    assert conv.args[0].meta["val"].dtype == torch.float32
    assert conv.meta["val"].dtype == precision
    assert ops(after) == {"conv": 1, "_to_copy": 1}  # of the output


CASTS = {
    "many channels": nn.Conv2d(17, 8, 3),
    "groups": nn.Conv2d(4, 8, 3, groups=2),
    "not the input": nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 8, 3)),
}


@pytest.mark.parametrize("case", CASTS)
def test_casts_that_stay(case):
    channels = 17 if case == "many channels" else 4
    after = check(CASTS[case], (2, channels, 9, 11), run=fuse_conv, precision=torch.float16)
    assert calls(after, "conv")[0].args[0].meta["val"].dtype == torch.float16
    assert ops(after)["_to_copy"] == 2


def test_cast_with_other_readers_stays():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return self.a(x), self.b(x)

    after = check(Model(), (2, 3, 9, 11), run=fuse_conv, precision=torch.float16)
    assert all(conv.args[0].target is torch.ops.aten._to_copy.default for conv in calls(after, "conv"))


def test_double_stays():
    after = check(nn.Sequential(_Double(), nn.Conv2d(3, 4, 3).double()), (1, 3, 5, 5), run=fuse_conv)
    assert ops(after)["convolution"] == 1
    assert "float64" in rejects(after)


class _Double(nn.Module):
    def forward(self, x):
        return x.double()
