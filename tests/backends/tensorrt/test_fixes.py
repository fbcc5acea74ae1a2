"""fixes: each rewrite computes what was there, and only where it is needed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from torchkiln.backends.tensorrt.fixes import fix_graph

from ..make_segment import make_segment


class Hard(nn.Module):
    def forward(self, x):
        return torch.nn.functional.hardswish(x * 2), x + 1


@pytest.mark.parametrize(("dtype", "rewrites"), [(torch.bfloat16, 1), (torch.float16, 0), (torch.float32, 0)])
def test_split_hardswish(dtype, rewrites):
    segment = make_segment(Hard(), (torch.randn(3, 17).to(dtype) * 3,), [{0: (1, 9)}])
    before = copy.deepcopy(segment.graph_module)
    assert fix_graph(segment.graph_module) == rewrites
    segment.graph_module.graph.lint()
    targets = [str(n.target) for n in segment.graph_module.graph.nodes]
    assert ("aten.hardswish.default" in targets) == (rewrites == 0)
    x = torch.randn(5, 17).to(dtype) * 3
    for got, expected in zip(segment.graph_module(x), before(x), strict=True):
        torch.testing.assert_close(got, expected, atol=0.02, rtol=0.02)
