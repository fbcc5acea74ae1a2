import pytest
import torch
from torch import nn

from torchkiln.lower.decompose_batch_norm import decompose_batch_norm


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_becomes_multiply_and_add(lowering, dims, affine):
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](5, affine=affine)
    model = lowering.randomize(nn.Sequential(nn.ReLU(), norm, nn.ReLU()))
    shape = (5, *(7, 3, 4)[:dims])
    graph_module = lowering.capture_dynamic_batch(model, torch.randn(2, *shape))
    assert decompose_batch_norm(graph_module) == 1
    ops = lowering.ops(graph_module)
    assert ops["mul.Tensor"] == ops["add.Tensor"] == 1
    for batch in (1, 3):
        lowering.check_equal(graph_module, model, torch.randn(batch, *shape))


def test_two_dimensional_input(lowering):
    model = lowering.randomize(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5)))
    graph_module = lowering.capture(model, torch.randn(3, 5))
    assert decompose_batch_norm(graph_module) == 1
    lowering.check_equal(graph_module, model, torch.randn(3, 5))


def test_leaves_statistics_of_the_batch(lowering):
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3, track_running_stats=False))
    graph_module = lowering.capture(model, torch.randn(2, 3, 5, 4))
    assert decompose_batch_norm(graph_module) == 0
    lowering.check_equal(graph_module, model, torch.randn(2, 3, 5, 4))
