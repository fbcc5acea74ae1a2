"""fuse_norms: norms and softmaxes with the casts, additions and activations around them, what is refused, and that the numbers stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchkiln.backends.cuda.passes.fuse_norms import fuse_norms

from .fusion import calls, check, check_each, ops, rejects


class Around(nn.Module):
    """``core(y)`` between two convolutions, so that in low precision casts stand around it."""

    def __init__(self, core, dims=2, channels=12):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.before, self.after, self.core = conv(3, channels, 1), conv(channels, 4, 1), core

    def forward(self, x):
        return self.after(self.core(self.before(x)))


class Last(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Core(nn.Module):
    def __init__(self, norm, function):
        super().__init__()
        self.norm, self.function = norm, function

    def forward(self, y):
        return self.function(self.norm, y)


def around(core, shape):
    torch.manual_seed(0)
    model = Around(core, len(shape) - 2)
    for parameter in model.core.parameters():
        nn.init.normal_(parameter)
    return model


def fused(core, shape=(2, 3, 7, 9), precision=None):
    return check(around(core, shape), shape, run=fuse_norms, precision=precision)


def fused_each(core, shape=(2, 3, 7, 9)):
    return check_each(around(core, shape), shape, run=fuse_norms)


NORMS = {
    "layer": ("layer_norm", Last(nn.LayerNorm(12))),
    "layer without weights": ("layer_norm", Last(nn.LayerNorm(12, elementwise_affine=False, eps=1e-3))),
    "layer over two": ("layer_norm", nn.LayerNorm((7, 9), bias=False)),
    "group": ("group_norm", nn.GroupNorm(4, 12)),
    "group without weights": ("group_norm", nn.GroupNorm(3, 12, affine=False)),
    "instance": ("group_norm", nn.InstanceNorm2d(12)),
    "instance with weights": ("group_norm", nn.InstanceNorm2d(12, affine=True)),
    "softmax": ("softmax", nn.Softmax(1)),
    "softmax last": ("softmax", nn.Softmax(-1)),
}


@pytest.mark.parametrize("case", NORMS)
def test_casts_are_taken_in(case):
    name, core = NORMS[case]
    for precision, after in fused_each(core):
        (node,) = calls(after, name)
        assert node.args[-1] == (precision or torch.float32)
        assert node.meta["val"].dtype == node.all_input_nodes[0].meta["val"].dtype == (precision or torch.float32)
        assert ops(after)["_to_copy"] == (2 if precision else 0)
        assert ops(after)["convolution"] == 2
        if name == "group_norm":
            assert node.args[1] == {"group": 4, "group without weights": 3}.get(case, 12)


@pytest.mark.parametrize("dims", [1, 3])
def test_instance_norm_of_other_ranks(dims):
    norm = nn.InstanceNorm1d(12) if dims == 1 else nn.InstanceNorm3d(12, affine=True)
    after = fused(norm, (2, 3, *[5] * dims), torch.float16)
    assert ops(after) == {"convolution": 2, "group_norm": 1, "_to_copy": 2}


EPILOGUES = {
    "activation": (lambda n, y: F.leaky_relu(n(y), 0.1), (False, "leaky_relu", 0.1)),
    "residual": (lambda n, y: n(y) + y, (True, "none", 0.0)),
    "residual first": (lambda n, y: y + n(y), (True, "none", 0.0)),
    "residual and activation": (lambda n, y: F.relu(n(y) + y), (True, "relu", 0.0)),
    "silu": (lambda n, y: F.silu(n(y)), (False, "silu", 0.0)),
}


@pytest.mark.parametrize("case", EPILOGUES)
@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 12), nn.InstanceNorm2d(12)])
def test_epilogues_of_group_norm(norm, case):
    function, (has_residual, activation, alpha) = EPILOGUES[case]
    for precision, after in fused_each(Core(norm, function)):
        (node,) = calls(after, "group_norm")
        assert (node.args[4] is not None, node.args[6], node.args[7]) == (has_residual, activation, alpha)
        assert node.args[8] == (precision or torch.float32)
        assert ops(after) == {"convolution": 2, "group_norm": 1} | ({"_to_copy": 2} if precision else {})


@pytest.mark.parametrize("precision", [None, torch.float16])
def test_sum_of_two_norms(precision):
    """The end of a residual block of SwinUNETR."""
    after = fused(Core(nn.InstanceNorm2d(12), lambda n, y: F.leaky_relu(n(y) + n(y.exp()))), precision=precision)
    first, second = calls(after, "group_norm")
    assert (first.args[4], first.args[6]) == (None, "none")
    assert (second.args[4], second.args[6]) == (first, "leaky_relu")
    assert not ops(after).keys() & {"add", "leaky_relu", "instance_norm"}


def test_layer_norm_takes_no_activation():
    after = fused(Last(nn.Sequential(nn.LayerNorm(12), nn.ReLU())), precision=torch.float16)
    assert ops(after) == {"convolution": 2, "layer_norm": 1, "relu": 1, "permute": 2, "_to_copy": 2}


def test_wide_reader_keeps_float32():
    after = fused(Core(nn.GroupNorm(4, 12), lambda n, y: (lambda z: z + z.exp())(n(y))), precision=torch.float16)
    (node,) = calls(after, "group_norm")
    assert node.meta["val"].dtype == torch.float32
    assert node.args[0].meta["val"].dtype == torch.float16


def test_source_with_other_readers_is_read_directly():
    after = fused(Core(nn.LayerNorm(9), lambda n, y: n(y) + y.exp()), precision=torch.float16)
    (node,) = calls(after, "layer_norm")
    assert node.args[0].meta["val"].dtype == torch.float16


def test_output_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 12), nn.Softmax(-1))
    after = check(model, (5, 9), run=fuse_norms, precision=torch.float16)
    (node,) = calls(after, "softmax")
    assert (node.args[0].meta["val"].dtype, node.args[2]) == (torch.float16, torch.float32)
    assert ops(after) == {"linear": 1, "softmax": 1, "_to_copy": 1}


def test_users_of_group_norm():
    after = fused(Core(nn.GroupNorm(4, 12), lambda n, y: (lambda z: F.relu(z) * z)(n(y))))
    assert calls(after, "group_norm")[0].args[6] == "none"
    assert "users" in rejects(after)


def test_broadcast_residual():
    after = fused(Core(nn.GroupNorm(4, 12), lambda n, y: n(y) + y[:1]))
    assert calls(after, "group_norm")[0].args[4] is None
    assert "broadcasts" in rejects(after)


def test_refused():
    after = fused(Core(nn.GroupNorm(4, 12).double(), lambda n, y: n(y.double()).float()))
    assert ops(after)["group_norm"] == 1
    assert not calls(after, "group_norm")
    assert "float64" in rejects(after)
    after = fused(Core(nn.Identity(), lambda n, y: y.softmax(1, dtype=torch.float16).float()))
    assert not calls(after, "softmax")
    assert "rounds" in rejects(after)


def test_views_after_a_change_of_strides():
    """A group norm of channels-last values may lie otherwise than the instance norm did."""
    core = Core(nn.InstanceNorm2d(12), lambda n, y: n(y.contiguous(memory_format=torch.channels_last)).flatten(1).unflatten(1, (12, 7, 9)).exp())
    for precision in (None, torch.float16):
        fused(core, precision=precision)
