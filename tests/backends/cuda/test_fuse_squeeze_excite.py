"""fuse_squeeze_excite: gates, their means and their products, what is refused, and that the numbers stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchkiln.backends.cuda.passes.fuse_squeeze_excite import fuse_squeeze_excite
from torchkiln.backends.cuda.passes.pipeline import fuse

from .fusion import calls, check, check_each, ops, rejects


class Block(nn.Module):
    """A depthwise (or other) convolution, squeeze-and-excite, a projection."""

    def __init__(self, *, groups=12, activation=F.silu, hidden=torch.relu, gate=torch.sigmoid, pool="pool", projection=None, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1, groups=groups)
        self.first, self.second = nn.Conv2d(12, 5, 1, bias=bias), nn.Conv2d(5, 12, 1, bias=bias)
        self.projection = projection if projection is not None else nn.Conv2d(12, 7, 1)
        self.activation, self.hidden, self.gate, self.pool = activation, hidden, gate, pool

    def pooled(self, y):
        if self.pool == "pool":
            return F.adaptive_avg_pool2d(y, 1)
        return y.mean((2, 3) if self.pool == "mean" else (-1, -2), keepdim=True)

    def gate_of(self, y):
        return self.gate(self.second(self.hidden(self.first(self.pooled(y)))))

    def forward(self, x):
        y = self.activation(self.conv(x))
        return self.projection(y * self.gate_of(y))


def fused(model, precision=None, run=fuse_squeeze_excite):
    torch.manual_seed(0)
    return check(model, (2, 12, 7, 9), run=run, precision=precision)


WHOLE = {"conv_excite": 1, "getitem": 2, "view": 1, "conv": 1}


@pytest.mark.parametrize("pool", ["pool", "mean", "negative"])
def test_whole_block(pool):
    torch.manual_seed(0)
    for precision, after in check_each(Block(pool=pool), (2, 12, 7, 9), run=fuse_squeeze_excite):
        assert ops(after) == WHOLE | ({"_to_copy": 2} if precision else {})
        (excite,), (conv,) = calls(after, "conv_excite"), calls(after, "conv")
        assert excite.args[11:] == ("silu", 0.0, "relu", "sigmoid")
        assert [tuple(excite.args[index].meta["val"].shape) for index in (3, 5)] == [(5, 12), (12, 5)]
        assert excite.meta["val"][1].dtype == (precision or torch.float32)
        assert tuple(conv.args[4].meta["val"].shape) == (2, 12, 1, 1)


@pytest.mark.parametrize(
    ("options", "activation", "hidden", "gate"),
    [
        ({"gate": F.hardsigmoid}, "silu", "relu", "hardsigmoid"),
        ({"hidden": F.silu, "bias": False}, "silu", "silu", "sigmoid"),
        ({"hidden": lambda x: x}, "silu", "none", "sigmoid"),
        ({"activation": F.hardswish}, "hardswish", "relu", "sigmoid"),
        ({"activation": lambda x: x}, "none", "relu", "sigmoid"),
        ({"activation": lambda x: F.leaky_relu(x, 0.1)}, "leaky_relu", "relu", "sigmoid"),
    ],
)
def test_activations(options, activation, hidden, gate):
    after = fused(Block(**options))
    assert ops(after) == WHOLE
    assert calls(after, "conv_excite")[0].args[11::2] == (activation, hidden)
    assert calls(after, "conv_excite")[0].args[14] == gate


@pytest.mark.parametrize("precision", [None, torch.float16])
@pytest.mark.parametrize("groups", [1, 3])
def test_mean_of_another_convolution(groups, precision):
    after = fused(Block(groups=groups), precision)
    assert ops(after) == {"convolution": 1, "silu": 1, "mean": 1, "squeeze_excite": 1, "view": 1, "conv": 1} | ({"_to_copy": 2} if precision else {})
    (mean,) = (node for node in after.graph.nodes if node.target is torch.ops.aten.mean.dim)
    assert mean.meta["val"].dtype == torch.float32
    assert tuple(mean.meta["val"].shape) == (2, 12)


@pytest.mark.parametrize(
    ("projection", "reason"),
    [(nn.Conv2d(12, 7, 3), "1x1"), (nn.Conv2d(12, 7, 1, 2), "stride"), (nn.Conv2d(12, 6, 1, groups=2), "ungrouped"), (nn.ReLU(), "no convolution")],
)
def test_product_stays(projection, reason):
    after = fused(Block(projection=projection))
    assert ops(after)["mul"] == 1
    assert ops(after)["conv_excite"] == 1
    assert not calls(after, "conv")
    assert reason in rejects(after)


def test_product_with_two_readers_stays():
    class Model(Block):
        def forward(self, x):
            y = self.activation(self.conv(x))
            z = y * self.gate_of(y)
            return self.projection(z), z

    after = fused(Model())
    assert ops(after)["mul"] == 1
    assert "users" in rejects(after)


def test_activation_read_elsewhere_too():
    class Model(Block):
        def forward(self, x):
            y = self.activation(self.conv(x))
            return self.projection(y * self.gate_of(y)), y.exp()

    assert ops(fused(Model())) == WHOLE | {"exp": 1}


def test_convolution_read_before_its_activation_is_not_excited():
    class Model(Block):
        def forward(self, x):
            z = self.conv(x)
            y = self.activation(z)
            return self.projection(y * self.gate_of(y)), z

    after = fused(Model())
    assert not calls(after, "conv_excite")
    assert len(calls(after, "squeeze_excite")) == 1


def test_refused_hidden_activations():
    after = fused(Block(hidden=F.leaky_relu))
    assert not calls(after, "conv_excite")
    assert "leaky_relu" in rejects(after)
    assert not calls(fused(Block(hidden=F.elu)), "conv_excite")


def test_refused_gates():
    assert not calls(fused(Block(gate=torch.tanh)), "conv_excite")
    assert not calls(fused(Block(pool="mean", gate=lambda x: x)), "conv_excite")


@pytest.mark.parametrize("gates", [1, 5, 24])
@pytest.mark.parametrize("groups", [1, 12])
def test_other_than_one_gate_to_a_channel(gates, groups):
    """A classifier of 1x1 convolutions: kernels would write as many gates as there are channels."""

    class Model(Block):
        def __init__(self):
            super().__init__(groups=groups)
            self.second = nn.Conv2d(5, gates, 1)

        def forward(self, x):
            return self.gate_of(self.activation(self.conv(x)))

    after = fused(Model())
    assert not calls(after, "conv_excite")
    assert not calls(after, "squeeze_excite")
    assert f"{gates} gates of 12 channels" in rejects(after)


def test_computed_bias_is_not_taken_by_the_convolution():
    class Model(Block):
        def gate_of(self, y):
            hidden = self.hidden(self.first(self.pooled(y)))
            return self.gate(F.conv2d(hidden, self.second.weight, self.second.bias * y.amax((0, 2, 3))))

    after = fused(Model())
    assert not calls(after, "conv_excite")
    assert len(calls(after, "squeeze_excite")) == 1
    assert "bias of the gate is computed" in rejects(after)


def test_hidden_value_read_elsewhere():
    class Model(Block):
        def forward(self, x):
            y = self.activation(self.conv(x))
            hidden = self.first(self.pooled(y))
            return self.projection(y * self.gate(self.second(self.hidden(hidden)))), hidden

    after = fused(Model())
    assert not calls(after, "conv_excite")
    assert "users" in rejects(after)


def test_sigmoid_of_a_map_is_no_gate():
    after = fused(nn.Sequential(nn.Conv2d(12, 5, 1), nn.ReLU(), nn.Conv2d(5, 1, 1), nn.Sigmoid()))
    assert ops(after) == {"convolution": 2, "relu": 1, "sigmoid": 1}
    assert rejects(after) == ""


@pytest.mark.parametrize("precision", [None, torch.float16])
def test_with_residual_and_activation(precision):
    class Model(Block):
        def forward(self, x):
            return torch.relu(super().forward(x) + x)

    after = fused(Model(projection=nn.Conv2d(12, 12, 1)), precision, run=fuse)
    assert ops(after) == WHOLE | ({"_to_copy": 2} if precision else {})
    (conv,) = calls(after, "conv")
    assert conv.args[3] is not None
    assert conv.args[11] == "relu"
