"""Which operations are marked as having a 2:4 weight, and what that changes: their key, and what they are measured on."""

from __future__ import annotations

import torch
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.test_tuner import Made, operation, tune  # noqa: F401 (a fixture)
from torch import nn

import torchkiln
from torchkiln.backends.cuda.mark_two_of_four import TWO_OF_FOUR, has_weight, mark_two_of_four
from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.specialize import specialize
from torchkiln.backends.cuda.trace import trace


class Net(nn.Module):
    """Layers with the pattern and without, a product of weights in the other order, one of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.dense, self.up = nn.Conv2d(16, 16, 1), nn.ConvTranspose2d(16, 16, 2, 2)
        self.matrix = nn.Parameter(torch.randn(16, 32))
        self.last = nn.Linear(32, 16)

    def forward(self, x):
        x = self.up(torch.relu(self.dense(torch.relu(self.norm(self.conv(x))))))
        x = x.flatten(2).transpose(1, 2) @ self.matrix
        return self.last(x @ x.transpose(1, 2) @ x)


def test_marks_what_has_the_pattern_after_folding_and_conversion():
    torch.manual_seed(0)
    net = torchkiln.sparsify(Net().eval(), stem=True, head=True, skip="dense")
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 2)
        net.matrix[::2] = 0  # [in, out]: two of four along the input
        net.up.weight[:, ::2] = 0
    for precision in (None, torch.float16, torch.bfloat16):
        module = specialize(lowered(net, [(1, 16, 4, 4)], precision), [(1, 16, 4, 4)])
        fuse(module)
        traced = trace(module, 80, 108, lambda op: "ieee")
        plain = [op.problem.key() for op in traced.operations]
        assert mark_two_of_four(traced) == 3
        marked = [op for op in traced.operations if op.problem.attributes.get(TWO_OF_FOUR)]
        assert [op.problem.op for op in marked] == ["conv", "linear", "linear"]
        assert [op.problem.inputs[1].shape for op in marked] == [(16, 16, 3, 3), (32, 16), (16, 32)]
        assert sum(has_weight(op.problem) for op in traced.operations) == 4, "those, and the convolution that was skipped"
        for op, key in zip(traced.operations, plain, strict=True):
            assert (op.problem.key() == key) == (op not in marked)


def test_the_tuner_says_what_to_measure_on(tune):  # noqa: F811
    plain, sparse = operation("plain"), operation("sparse")
    sparse.problem.attributes[TWO_OF_FOUR] = True
    _, pool = tune([Made("only", {"us": 5.0})], [plain, sparse])
    assert [job.two_of_four for job in pool.jobs] == [False, True]
