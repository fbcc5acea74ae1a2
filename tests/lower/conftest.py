"""Helpers of the lowering tests: a model's captured graph, and what every pass must leave true."""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.export import Dim
from torch.fx import GraphModule
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from torchkiln.capture.unlift import unlift
from torchkiln.lower.decompose import decomposition_table
from torchkiln.lower.graph_edit import fake_mode_of


class Lowering:
    """What the tests ask of graphs."""

    def capture(self, model: torch.nn.Module, *args: torch.Tensor, dynamic: Sequence[dict[int, Any] | None] | None = None) -> GraphModule:
        """The flat graph of ``model`` (in eval mode), as capture makes it."""
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model.eval(), args, dynamic_shapes=dynamic, strict=False)
            return unlift(program.run_decompositions(decomposition_table()))

    def capture_dynamic_batch(self, model: torch.nn.Module, *args: torch.Tensor) -> GraphModule:
        """The same, with dimension 0 of every input one symbolic batch from 1 to 64."""
        return self.capture(model, *args, dynamic=tuple({0: Dim.DYNAMIC(min=1, max=64)} for _ in args))

    def ops(self, graph_module: GraphModule) -> Counter[str]:
        """How often each operator is called, by its short name."""
        calls = [n for n in graph_module.graph.nodes if n.op == "call_function"]
        return Counter(str(n.target).removeprefix("aten.") if n.target is not operator.getitem else "getitem" for n in calls)

    def check_graph(self, graph_module: GraphModule) -> None:
        """The invariants of program.py: well formed, and every ``meta["val"]`` is what its operator computes."""
        graph_module.graph.lint()
        output = graph_module.graph.output_node().args[0]
        assert isinstance(output, tuple)
        for node in graph_module.graph.nodes:
            assert node.op in ("placeholder", "get_attr", "call_function", "output")
            if node.op == "get_attr":
                tensor = getattr(graph_module, node.target)
                assert tensor.dtype == node.meta["val"].dtype
                assert tensor.shape == node.meta["val"].shape
            if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.returns:
                continue
            args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
            with fake_mode_of(graph_module), torch.no_grad():
                computed = node.target(*args, **kwargs)
            for a, b in zip(tree_leaves(computed), tree_leaves(node.meta["val"]), strict=True):
                if isinstance(a, torch.Tensor):
                    assert a.dtype == b.dtype, node.format_node()
                    assert len(a.shape) == len(b.shape), node.format_node()
                    assert all(str(x) == str(y) for x, y in zip(a.shape, b.shape, strict=True)), (node.format_node(), a.shape, b.shape)

    def check_equal(self, graph_module: GraphModule, model: torch.nn.Module, *args: torch.Tensor, tolerance: float = 2e-6) -> None:
        """Check the graph's invariants, and its outputs against the model's: relative L2 error at most ``tolerance``."""
        self.check_graph(graph_module)
        with torch.no_grad():
            expected = tree_leaves(model.eval()(*args))
            got = graph_module(*args)
        assert len(expected) == len(got)
        for a, b in zip(expected, got, strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            if a.dtype.is_floating_point:
                assert torch.equal(a.isnan(), b.isnan())
                error = (a.double() - b.double()).nan_to_num().norm() / a.double().nan_to_num().norm().clamp_min(1e-30)
                assert error <= tolerance, f"relative error {error:.2e}"
            else:
                assert torch.equal(a, b)

    def randomize(self, model: torch.nn.Module) -> torch.nn.Module:
        """Give batch norms statistics and weights that matter."""
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 2.0)
                if module.affine:
                    torch.nn.init.uniform_(module.weight, 0.3, 2.0)
                    torch.nn.init.normal_(module.bias, 0, 0.5)
        return model.eval()


@pytest.fixture
def lowering() -> Lowering:
    torch.manual_seed(20)
    return Lowering()
