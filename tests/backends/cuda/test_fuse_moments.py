"""fuse_moments: which norms take the moments of the convolution before them, what is refused, and that the numbers stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.backends.cuda.fusion import calls, check, check_each, ops, rejects
from tests.backends.cuda.run_plan import build_plan, run
from torch import nn

from torchkiln.backends.cuda.passes import fuse_moments as module
from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.specialize import specialize


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(module, "FEW_POSITIONS", 40)


class Core(nn.Module):
    """function(norm, convolution(x)) of [2, 8, 7, 9]."""

    def __init__(self, norm, function=lambda norm, y: norm(y), conv=None):
        super().__init__()
        self.conv, self.norm, self.function = conv or nn.Conv2d(8, 12, 3, padding=1), norm, function

    def forward(self, x):
        return self.function(self.norm, self.conv(x))


def fused(model, precision=None, shape=(2, 8, 7, 9)):
    torch.manual_seed(0)
    return check(model, shape, run=fuse, precision=precision)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(12), nn.InstanceNorm2d(12, affine=True), nn.GroupNorm(4, 12), nn.GroupNorm(1, 12)])
def test_norm_takes_moments(norm):
    torch.manual_seed(0)
    for precision, after in check_each(Core(norm, lambda n, y: F.leaky_relu(n(y), 0.1)), (2, 8, 7, 9), run=fuse):
        assert ops(after) == {"conv_moments": 1, "getitem": 2, "group_norm": 1} | ({"_to_copy": 1} if precision else {})
        (node,), (conv,) = calls(after, "group_norm"), calls(after, "conv_moments")
        assert node.args[9].meta["val"].shape == (2, 2, 12)
        assert node.args[9].meta["val"].dtype == torch.float32
        assert node.args[9].args == (conv, 1)
        assert node.args[0].args == (conv, 0)
        assert node.args[6:8] == ("leaky_relu", 0.1)
        assert rejects(after) == ""


def test_other_readers_of_the_convolution():
    after = fused(Core(nn.InstanceNorm2d(12), lambda n, y: (n(y) + y, y.exp(), F.relu(F.group_norm(y, 3)))), torch.float16)
    assert ops(after)["conv_moments"] == 1
    first, second = calls(after, "group_norm")
    assert first.args[9] is second.args[9] is not None
    assert {first.args[4] is not None, second.args[4] is not None} == {False, True}


def test_epilogue_of_the_convolution_stays():
    after = fused(Core(nn.GroupNorm(3, 12), lambda n, y: n(F.relu(y + 1.5 * y.detach().abs()))))
    assert ops(after)["conv_moments"] == 0  # the sum has an addend made of the convolution itself: it is no epilogue
    after = fused(Core(nn.GroupNorm(3, 12), lambda n, y: n(F.relu(y))))
    (conv,) = calls(after, "conv_moments")
    assert conv.args[11] == "relu"


def test_residual_block():
    """Of SwinUNETR: the last two norms are added, one of them after a 1x1 convolution."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv3d(4, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1), nn.Conv3d(4, 8, 1)
            self.norm = nn.InstanceNorm3d(8)

        def forward(self, x):
            y = F.leaky_relu(self.norm(self.a(x)), 0.01)
            return F.leaky_relu(self.norm(self.b(y)) + self.norm(self.c(x)), 0.01)

    after = fused(Block(), torch.float16, (1, 4, 4, 5, 6))
    assert ops(after) == {"conv_moments": 3, "getitem": 6, "group_norm": 3, "_to_copy": 2}
    assert sum(node.args[4] is not None for node in calls(after, "group_norm")) == 1


REFUSED = {
    "transposed": (Core(nn.GroupNorm(3, 12), conv=nn.ConvTranspose2d(8, 12, 2, 2)), "transposed"),
    "depthwise": (Core(nn.GroupNorm(2, 8), conv=nn.Conv2d(8, 8, 3, padding=1, groups=8)), "depthwise"),
    "joined": (Core(nn.GroupNorm(3, 12), lambda n, y: torch.cat((y, n(y)), 1)), "in place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    model, reason = REFUSED[name]
    after = fused(model)
    assert (ops(after)["conv"], ops(after)["conv_moments"], ops(after)["group_norm"]) == (1, 0, 1)
    assert reason in rejects(after)


def test_computed_weight_is_refused():
    class Model(nn.Module):
        def forward(self, x, weight):
            return F.group_norm(F.conv2d(x, weight), 3)

    after = check(Model(), (2, 8, 7, 9), (12, 8, 1, 1), run=fuse)
    assert ops(after) == {"conv": 1, "group_norm": 1}
    assert "computed" in rejects(after)


def test_few_positions_and_other_sources_stay():
    after = fused(Core(nn.GroupNorm(3, 12)), shape=(2, 8, 5, 8))
    assert ops(after) == {"conv": 1, "group_norm": 1}
    after = fused(Core(nn.GroupNorm(3, 12), lambda n, y: n(F.max_pool2d(y, 3, 1, 1))))
    assert ops(after)["conv_moments"] == 0
    assert rejects(after) == ""


class Network(nn.Module):
    """Convolution, instance norm, leaky_relu, convolution, group norm + residual, leaky_relu, and a strided convolution with relu before its norm."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 20, 1), nn.Conv2d(20, 8, 2, stride=2)
        self.norm, self.group = nn.InstanceNorm2d(20), nn.GroupNorm(5, 20)

    def forward(self, x):
        y = F.leaky_relu(self.norm(self.a(x)), 0.01)
        y = F.leaky_relu(self.group(self.b(y)) + y, 0.01)
        return F.instance_norm(F.relu(self.c(y)))


@pytest.mark.parametrize("precision", [None, torch.float16])
@pytest.mark.parametrize("tactics", [False, True])
def test_plan(precision, tactics):
    model, shape = Network(), (2, 3, 13, 17)
    after = specialize(fused(model, precision, shape), [shape])
    plan, loaded, operations = build_plan(after, tactics=tactics)
    found = [operation.problem for operation in operations if operation.problem.op == "conv_moments"]
    assert [problem.outputs[1].shape for problem in found] == [(2, 2, 20), (2, 2, 20), (2, 2, 8)]
    assert all(problem.outputs[0].is_channels_last and problem.outputs[1].is_contiguous for problem in found)
    assert [info.tactic for info in plan.infos if info.op == "group_norm"] == ["group_norm_split" if tactics else "torch"] * 3
    x = torch.randn(shape)
    with torch.no_grad():
        (expected,) = (model(x),)
    for _ in range(2):
        (got,) = run(loaded, [x])
        assert (got - expected).norm() <= (1e-5 if precision is None else 5e-3) * expected.norm()
