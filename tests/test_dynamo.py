"""torch.compile(backend="torchkiln"): found by its entry point, options checked, graph breaks, changing shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkiln  # noqa: F401


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Breaks(nn.Module):
    """Branches on data: torch.export refuses it, Dynamo splits it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = self.b(x) if x.sum() > 3 else x - 1
        return self.c(x)


def test_a_model_that_export_refuses():
    model = Breaks().eval()
    compiled = torch.compile(model, backend="torchkiln", options={"backend": "torch"})
    with torch.inference_mode():
        for scale in (0.0, 10.0):
            x = torch.randn(5, 6) * scale
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, None, True])
def test_changing_shapes(dynamic):
    model = nn.Sequential(nn.Linear(6, 3), nn.ReLU()).eval()
    compiled = torch.compile(model, backend="torchkiln", dynamic=dynamic, options={"backend": "torch"})
    with torch.no_grad():
        for batch in (4, 7, 4, 9):
            x = torch.randn(batch, 6)
            torch.testing.assert_close(compiled(x), model(x))


def test_misspelt_option():
    compiled = torch.compile(nn.Linear(3, 3).eval(), backend="torchkiln", options={"min_blck_size": 2})
    with pytest.raises(Exception, match="Did you mean 'min_block_size'"), torch.no_grad():
        compiled(torch.randn(2, 3))


def test_gradients_are_refused_in_words():
    compiled = torch.compile(nn.Linear(3, 3).eval(), backend="torchkiln", options={"backend": "torch"})
    with pytest.warns(UserWarning, match="no gradients"):
        assert not compiled(torch.randn(2, 3)).requires_grad


def test_a_target_that_is_not_here_is_refused():
    compiled = torch.compile(nn.Linear(3, 3).eval(), backend="torchkiln", options={"target": "sm_75"})
    with pytest.raises(Exception, match="option 'target': sm_75 is not in this machine"), torch.no_grad():
        compiled(torch.randn(2, 3))
    here = torch.compile(nn.Linear(3, 3).eval(), backend="torchkiln", options={"target": "cpu", "backend": "torch"})
    with torch.no_grad():
        assert here(torch.randn(2, 3)).shape == (2, 3)
