import pytest
import torch
from torch import nn

from torchkiln.lower.remove_size_assertions import remove_size_assertions


class Selects(nn.Module):
    def forward(self, x):
        return x[x > 0].exp()


def test_no_result_and_one_result_are_results(lowering):
    graph_module = lowering.capture(Selects(), torch.tensor([1.0, 2.0, -1.0, 3.0]))
    removed = remove_size_assertions(graph_module)
    assert removed >= 1
    for x in ([-1.0, -2.0, -3.0, -4.0], [-1.0, 2.0, -3.0, -4.0], [1.0, 2.0, 3.0, 4.0]):
        torch.testing.assert_close(graph_module(torch.tensor(x))[0], Selects()(torch.tensor(x)))


class Checks(nn.Module):
    def forward(self, x):
        kept = x[x > 0]
        torch._check(kept.shape[0] <= 3)
        return kept + 1


def test_the_models_own_checks_stay(lowering):
    graph_module = lowering.capture(Checks(), torch.tensor([1.0, 2.0, -1.0, 3.0]))
    remove_size_assertions(graph_module)
    assert graph_module(torch.tensor([1.0, -1.0, -1.0, -1.0]))[0].tolist() == [2.0]
    with pytest.raises(RuntimeError):
        graph_module(torch.ones(4))


def test_leaves_graphs_without_them_alone(lowering):
    graph_module = lowering.capture_dynamic_batch(nn.Linear(3, 2), torch.randn(4, 3))
    assert remove_size_assertions(graph_module) == 0
