import pytest
import torch
from torch import nn

from torchkiln.lower.fold_constants import fold_constants
from torchkiln.lower.remove_dead_code import remove_dead_code


class Tables(nn.Module):
    """Position tables, a mask and computed weights: everything but two additions and a matmul is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(7))
        self.weight = nn.Parameter(torch.randn(7, 7))

    def forward(self, x):
        position = torch.arange(7, dtype=torch.float32)[:, None] * self.scale
        mask = torch.where(torch.arange(7) > 3, 0.0, -1.0)
        return x @ (self.weight / self.weight.norm(dim=1, keepdim=True)).t() + position.sin() + mask


def _clean(graph_module):
    remove_dead_code(graph_module)
    return graph_module


def test_folds_what_no_input_reaches(lowering):
    model = Tables()
    graph_module = lowering.capture_dynamic_batch(model, torch.randn(4, 7, 7))
    assert fold_constants(graph_module) == 3
    _clean(graph_module)
    assert set(lowering.ops(graph_module)) == {"matmul.default", "add.Tensor"}
    assert {n.target for n in graph_module.graph.nodes if n.op == "get_attr"} == set(dict(graph_module.named_buffers()))
    for batch in (1, 3):
        lowering.check_equal(graph_module, model, torch.randn(batch, 7, 7))


def test_folds_static_sizes_into_arguments(lowering):
    class Sizes(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0], x.shape[1] * x.shape[2]) * x.shape[1]

    graph_module = lowering.capture_dynamic_batch(Sizes(), torch.randn(4, 3, 5))
    fold_constants(graph_module)
    remove_dead_code(graph_module)
    assert lowering.ops(graph_module) == {"sym_size.int": 1, "view.default": 1, "mul.Tensor": 1}
    lowering.check_equal(graph_module, Sizes(), torch.randn(3, 3, 5))


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand(3) + torch.bernoulli(torch.full((3,), 0.5))


def test_leaves_random_draws(lowering):
    graph_module = lowering.capture(Random(), torch.zeros(2, 3))
    before = lowering.ops(graph_module)
    fold_constants(graph_module)
    after = lowering.ops(graph_module)
    assert after["rand.default"] == before["rand.default"] == 2
    assert not torch.equal(graph_module(torch.zeros(2, 3))[0], graph_module(torch.zeros(2, 3))[0])


class Expanded(nn.Module):
    """The sum of two rows is worth keeping; the 500 x 500 table it is expanded to is not, nor is a fill of that size."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(500))

    def forward(self, x):
        return x + (self.row + 1).expand(500, 500) + torch.full((500, 500), 0.25)


def test_leaves_expansions_and_folds_what_they_expand(lowering):
    model = Expanded()
    graph_module = lowering.capture(model, torch.randn(3, 500, 500))
    assert fold_constants(graph_module) == 1
    _clean(graph_module)
    assert lowering.ops(graph_module) == {"expand.default": 1, "full.default": 1, "add.Tensor": 2}
    assert sum(b.numel() for b in graph_module.buffers()) == 500
    lowering.check_equal(graph_module, model, torch.randn(3, 500, 500))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(300))

    def forward(self, x):
        return x * (self.a[:, None] * self.a)


@pytest.mark.parametrize(("limit_bytes", "folded"), [(300 * 300 * 4, 1), (300 * 4, 0)])
def test_size_limit(lowering, limit_bytes, folded):
    model = Outer()
    graph_module = lowering.capture(model, torch.randn(2, 300, 300))
    fold_constants(graph_module, limit_bytes)
    _clean(graph_module)
    assert lowering.ops(graph_module)["mul.Tensor"] == 2 - folded
    assert sum(b.numel() for b in graph_module.buffers()) <= 300 * 300
    lowering.check_equal(graph_module, model, torch.randn(2, 300, 300))


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 6))

    def forward(self, x, ids):
        return x @ self.table.t() + nn.functional.embedding(ids, self.table).sum(-1, keepdim=True)


def test_does_not_store_a_view_of_what_is_read_anyway(lowering):
    model = TiedEmbedding()
    args = torch.randn(2, 6), torch.tensor([3, 7])
    graph_module = lowering.capture(model, *args)
    assert fold_constants(graph_module) == 0
    assert sum(b.numel() for b in graph_module.buffers()) == 66
    lowering.check_equal(graph_module, model, *args)


class SplitWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 5))

    def forward(self, x):
        q, k = self.weight[:3], self.weight[3:7]
        return nn.functional.linear(x, q), nn.functional.linear(x, k), nn.functional.linear(x, self.weight[:3])


def test_parts_of_a_weight_let_the_whole_go(lowering):
    model = SplitWeight()
    graph_module = lowering.capture(model, torch.randn(2, 5))
    assert fold_constants(graph_module) == 3
    _clean(graph_module)
    assert sorted(tuple(b.shape) for b in graph_module.buffers()) == [(3, 5), (4, 5)]  # the two equal slices share one
    assert sum(b.untyped_storage().nbytes() for b in graph_module.buffers()) == 7 * 5 * 4
    lowering.check_equal(graph_module, model, torch.randn(2, 5))


class ConstantOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return x, self.row.exp() * 2


def test_a_constant_output_is_computed_afresh_each_call(lowering):
    model = ConstantOutput()
    graph_module = lowering.capture(model, torch.randn(2))
    assert fold_constants(graph_module) == 1
    assert lowering.ops(graph_module)["mul.Tensor"] == 1
    first = graph_module(torch.randn(2))[1].fill_(7)
    assert not torch.equal(graph_module(torch.randn(2))[1], first)
    lowering.check_equal(graph_module, model, torch.randn(2))


def test_reports_nothing_to_fold(lowering):
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    graph_module = lowering.capture_dynamic_batch(model, torch.randn(4, 5))
    assert fold_constants(graph_module) == 0
    lowering.check_equal(graph_module, model, torch.randn(3, 5))


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flags = nn.Parameter(torch.tensor([1.0, -1.0, 2.0]))

    def forward(self, x):
        chosen = self.flags[self.flags > 0]
        return x * chosen.sum() + chosen.shape[0]


def test_leaves_sizes_that_depend_on_data(lowering):
    graph_module = lowering.capture(DataDependent(), torch.randn(3))
    fold_constants(graph_module)
    assert lowering.ops(graph_module)["nonzero.default"] + lowering.ops(graph_module)["index.Tensor"] >= 1
    x = torch.randn(3)
    torch.testing.assert_close(graph_module(x)[0], DataDependent()(x))
