"""fuse_linear: products with weights, what is refused, and that the numbers stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchkiln.backends.cuda.passes.fuse_linear import fuse_linear

from .fusion import calls, check, check_each, ops, rejects


class Net(nn.Module):
    """``core(x, linear, matrix [24, 24], bias [24])``."""

    def __init__(self, core):
        super().__init__()
        self.core, self.linear = core, nn.Linear(24, 24)
        self.matrix, self.bias = nn.Parameter(torch.randn(24, 24)), nn.Parameter(torch.randn(24))

    def forward(self, x):
        return self.core(x, self.linear, self.matrix, self.bias)


def fused(core, shape=(3, 7, 24), precision=None):
    torch.manual_seed(0)
    return check(Net(core), shape, run=fuse_linear, precision=precision)


def fused_each(core, shape=(3, 7, 24)):
    torch.manual_seed(0)
    return check_each(Net(core), shape, run=fuse_linear)


def epilogues(after):
    """(has a bias, has a residual, activation) of each."""
    return [(node.args[2] is not None, node.args[3] is not None, node.args[4]) for node in calls(after, "linear")]


FUSED = {
    "linear": (lambda x, f, w, b: f(x), (True, False, "none")),
    "gelu": (lambda x, f, w, b: F.gelu(f(x)), (True, False, "gelu")),
    "gelu_tanh": (lambda x, f, w, b: F.gelu(f(x), approximate="tanh"), (True, False, "gelu_tanh")),
    "relu": (lambda x, f, w, b: F.relu(F.linear(x, w)), (False, False, "relu")),
    "residual": (lambda x, f, w, b: x + f(x), (True, True, "none")),
    "residual and activation": (lambda x, f, w, b: F.silu(f(x) + x), (True, True, "silu")),
    "matmul": (lambda x, f, w, b: torch.tanh(x @ w + x), (False, True, "tanh")),
}
MATRICES = {
    "mm": (lambda x, f, w, b: torch.mm(x, w), (False, False, "none")),
    "addmm": (lambda x, f, w, b: F.relu(torch.addmm(b, x, w)), (True, False, "relu")),
    "addmm of a residual": (lambda x, f, w, b: F.relu(torch.addmm(x, x, w)), (False, True, "relu")),
    "linear": (lambda x, f, w, b: f(x) + x, (True, True, "none")),
}


@pytest.mark.parametrize("case", FUSED)
def test_fused(case):
    core, epilogue = FUSED[case]
    for precision, after in fused_each(core):
        assert epilogues(after) == [epilogue]
        assert ops(after) == {"linear": 1} | ({"_to_copy": 2} if precision else {})
        assert tuple(calls(after, "linear")[0].meta["val"].shape) == (3, 7, 24)


@pytest.mark.parametrize("case", MATRICES)
def test_matrices(case):
    core, epilogue = MATRICES[case]
    for precision, after in fused_each(core, (13, 24)):
        assert epilogues(after) == [epilogue]
        assert ops(after) == {"linear": 1} | ({"_to_copy": 2} if precision else {})


def test_transposed_weight_is_stored_once():
    after = fused(lambda x, f, w, b: torch.exp(x @ w) @ w)
    assert ops(after) == {"linear": 2, "exp": 1}
    first, second = calls(after, "linear")
    assert first.args[1].target == second.args[1].target
    assert len(list(after.buffers()) + list(after.parameters())) == 1


def test_of_two_products_the_later_takes_the_other():
    after = fused(lambda x, f, w, b: f(x) + F.linear(x, w))
    assert epilogues(after) == [(True, False, "none"), (False, True, "none")]


REFUSED = {
    "view between": (lambda x, f, w, b: f(x).view(21, 24) + x.reshape(21, 24), "", {"view": 2, "add": 1}),
    "permute between": (lambda x, f, w, b: f(x).transpose(0, 1) + x.transpose(0, 1).exp(), "", {"permute": 2, "add": 1, "exp": 1}),
    "slice between": (lambda x, f, w, b: f(x)[:, :3] + x[:, :3], "", {"slice": 2, "add": 1}),
    "broadcast": (lambda x, f, w, b: f(x) + x[:1], "broadcasts", {"slice": 1, "add": 1}),
    "users": (lambda x, f, w, b: (lambda y: (y.relu(), y))(f(x)), "users", {"relu": 1}),
    "other activation": (lambda x, f, w, b: F.elu(f(x)), "", {"elu": 1}),
    "activation before": (lambda x, f, w, b: F.gelu(f(x)) + x, "", {"add": 1}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_left(case):
    core, reason, left = REFUSED[case]
    after = fused(core)
    assert ops(after) == {"linear": 1} | left
    assert reason in rejects(after)


COMPUTED = {
    "weight": (lambda x, f, w, b: F.linear(x, x[:5]), "computed"),
    "addmm": (lambda x, f, w, b: torch.addmm(b[:13], x, x.t()), "computed"),
    "beta": (lambda x, f, w, b: torch.addmm(b, x, w, beta=0.5), "beta"),
    "column": (lambda x, f, w, b: torch.addmm(b[:13, None], x, w), "adds"),
    "two activations": (lambda x, f, w, b: x @ x.t(), ""),
    "double": (lambda x, f, w, b: x.double() @ w.double(), "float64"),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_refused(case):
    core, reason = COMPUTED[case]
    after = fused(core, (13, 24))
    assert not calls(after, "linear")
    assert reason in rejects(after)
