"""Whole plans on the CPU: fused, laid out, with torchkiln's own kernels in one arena, against the graph they come from."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.run_plan import build_plan, run
from torch import nn

from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.specialize import specialize


class Residual(nn.Module):
    """A first convolution, a bottleneck, pooling and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.a, self.b, self.c = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, 2, 1)
        x = F.relu(x + self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.head(x.mean((2, 3)))


class Gated(nn.Module):
    """A depthwise convolution with squeeze-and-excite."""

    def __init__(self):
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 5, padding=2, groups=24)
        self.down, self.up, self.project = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1), nn.Conv2d(24, 8, 1)

    def forward(self, x):
        y = F.silu(self.depthwise(F.silu(self.expand(x))))
        gate = torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.project(gate * y)


class Block(nn.Module):
    """A transformer block, sequence first inside as torchvision's."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention, self.norm2 = nn.LayerNorm(32), nn.MultiheadAttention(32, 2, batch_first=True), nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        n = self.norm(x)
        x = x + self.attention(n, n, n, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Joined(nn.Module):
    """Two branches and a transposed convolution, concatenated; one branch is also read by itself; a part is an output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.up = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.c = nn.Conv2d(24, 8, 1)

    def forward(self, x):
        a = F.relu(self.a(x))
        joined = torch.cat([a, self.up(F.relu(self.b(a))), torch.tanh(x)], 1)
        return F.leaky_relu(self.c(joined), 0.1), joined[:, 3:7], a


class Volume(nn.Module):
    """3-D: instance norm with activation and residual, a window partition with roll and padding."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv3d(4, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1), nn.InstanceNorm3d(8)
        self.project = nn.Linear(8, 8)

    def forward(self, x):
        y = F.leaky_relu(self.norm(self.a(x)), 0.01)
        y = F.leaky_relu(self.norm(self.b(y)) + y, 0.01)
        z = F.pad(y.permute(0, 2, 3, 4, 1), (0, 0, 0, 1, 0, 1, 0, 1)).roll((-1, -1, -1), (1, 2, 3))
        n, d, h, w, c = z.shape
        z = z.view(n, d // 2, 2, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 8, c)
        return self.project(z).softmax(-1), y.sum((2, 3, 4))


MODELS = {
    "residual": (Residual, [(2, 3, 29, 31)]),
    "gated": (Gated, [(2, 8, 7, 9)]),
    "block": (Block, [(2, 19, 32)]),
    "joined": (Joined, [(2, 8, 6, 10)]),
    "volume": (Volume, [(1, 4, 5, 5, 5)]),
}


@pytest.mark.parametrize("precision", [None, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_plan(name, precision):
    torch.manual_seed(0)
    make, shapes = MODELS[name]
    before = lowered(make(), shapes, precision)
    graph_module = specialize(copy.deepcopy(before), shapes)
    fuse(graph_module)
    plan, loaded, _ = build_plan(graph_module)
    assert {info.tactic for info in plan.infos} != {"torch"}
    assert plan.arena_bytes <= plan.tensor_bytes
    inputs = [torch.randn(shape) for shape in shapes]
    with torch.no_grad():
        expected = before(*inputs)
    for round_ in range(2):
        for index, (got, right) in enumerate(zip(run(loaded, inputs), expected, strict=True)):
            assert (got.shape, got.dtype, got.is_contiguous()) == (right.shape, right.dtype, True)
            error = (got.double() - right.double()).norm() / right.double().norm()
            assert error <= (1e-5 if precision is None else 5e-3), f"round {round_}, output {index}: {error:.3g}"


def test_torch_runs_what_no_tactic_takes():
    class Sorted(nn.Module):
        def forward(self, x):
            values, places = torch.sort(x.exp(), dim=1)
            return torch.cumsum(values, 1) * 2, places

    graph_module = specialize(lowered(Sorted(), [(3, 7)]), [(3, 7)])
    fuse(graph_module)
    plan, loaded, _ = build_plan(graph_module)
    assert "torch" in {info.tactic for info in plan.infos}
    x = torch.randn(3, 7)
    values, places = Sorted()(x)
    got = run(loaded, [x])
    torch.testing.assert_close(got[0], values)
    assert torch.equal(got[1], places)


def test_outputs_that_are_inputs_or_each_other_are_copies():
    class Same(nn.Module):
        def forward(self, x):
            y = x * 2
            return x, y, y.transpose(0, 1), y[1:]

    graph_module = specialize(lowered(Same(), [(3, 4)]), [(3, 4)])
    _, loaded, _ = build_plan(graph_module)
    x = torch.randn(3, 4)
    outputs = run(loaded, [x])
    for got, right in zip(outputs, Same()(x), strict=True):
        torch.testing.assert_close(got, right)
    assert len({t.untyped_storage().data_ptr() for t in (*outputs, x)}) == 5


class Aliases(nn.Module):
    """Slices that are not aligned, pieces of a split, a scalar of what torch made, tensors made of nothing, empty ones."""

    def forward(self, x):
        a, b = torch.tanh(x).split([2, 5], 1)
        last = torch.cumsum(x, 0)[2, 1]
        filled = torch.full_like(x, 2.0) + torch.zeros_like(x)
        joined = torch.cat([torch.cat([x[:0] * 2, x[:, :] + 1], 0), torch.zeros(0) * 2], 1)
        return torch.relu(x[:, 1:]) * 2, torch.stack([x, x * 2], -1), last * b, filled.cumsum(1) + x, joined, a


class Overlapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(2)

    def forward(self, x):
        t = x * 2
        return self.norm(t[:, 0].expand(2, 2) + x[:, :2])


@pytest.mark.parametrize("tactics", [True, False])
@pytest.mark.parametrize(("make", "shape"), [(Aliases, (3, 7)), (Overlapping, (2, 3))])
def test_memory_is_read_where_it_is(make, shape, tactics):
    before = lowered(make(), [shape], None)
    graph_module = specialize(copy.deepcopy(before), [shape])
    fuse(graph_module)
    _, loaded, _ = build_plan(graph_module, tactics=tactics)
    x = torch.randn(shape)
    with torch.no_grad():
        for got, right in zip(run(loaded, [x]), before(x), strict=True):
            torch.testing.assert_close(got, right)
