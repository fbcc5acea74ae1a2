"""fuse_linear: matrix products with a weight become ``torchkiln::linear``, with the residual addition and the activation after them."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import linear as _linear  # noqa: F401  (registers the operator)
from ....lower.graph_edit import call_functions, constant_of, fake_mode_of, insert_constant
from ....lower.remove_dead_code import remove_dead_code
from .emit import emit
from .epilogue import Epilogue, fuse_activations, fuse_residuals
from .match import FLOATS, Refused, arguments_of, dtype_of, reject, shape_of

aten = torch.ops.aten

_EPILOGUE = Epilogue(torch.ops.torchkiln.linear.default, residual=3, activation=4, alpha=5)


def fuse_linear(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of products and of what was fused into them.

    ``linear``, ``addmm``, ``mm`` and ``matmul`` with a constant matrix as second operand become ``torchkiln.linear``; then as for convolutions
    (fuse_conv) an addition of the same shape and dtype, and an activation. The matrices of the latter three are stored transposed.

    What is nearly so is left as it is, and (node, reason) appended to ``graph_module.meta["rejects"]``.
    """
    graph_module.meta.setdefault("rejects", [])
    rewriter = _Rewriter(graph_module)
    count = 0
    for node in call_functions(graph_module, aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default):
        try:
            args = rewriter.arguments(node)
        except Refused as refused:
            reject(graph_module, node, str(refused))
            continue
        if args is not None:
            emit(graph_module, node, _EPILOGUE.target, args)
            count += 1
    count += fuse_residuals(graph_module, _EPILOGUE)
    count += fuse_activations(graph_module, _EPILOGUE)
    remove_dead_code(graph_module)
    graph_module.recompile()
    return count


class _Rewriter:
    def __init__(self, graph_module: GraphModule) -> None:
        self.graph_module = graph_module
        self.transposed: dict[Any, str] = {}
        """Attribute -> the attribute that is its transpose, so that products that share a weight still do."""

    def arguments(self, node: Node) -> tuple[Any, ...] | None:
        """What ``torchkiln.linear`` takes for ``node``; None for a product of two activations, which is none of ours."""
        given = arguments_of(node)
        if dtype_of(node) not in FLOATS:
            raise Refused(f"a product in {dtype_of(node)}")
        if node.target is aten.linear.default:
            if constant_of(given["weight"]) is None:
                raise Refused("the weight is computed")
            if len(shape_of(given["weight"])) != 2 or len(shape_of(given["bias"])) > 1:
                raise Refused(f"weight {list(shape_of(given['weight']))}, bias {list(shape_of(given['bias']))}")
            return given["input"], given["weight"], given["bias"], None, "none", 0.0
        if node.target is aten.addmm.default:
            x, matrix = given["mat1"], given["mat2"]
        else:
            x, matrix = given["self"], given["mat2" if node.target is aten.mm.default else "other"]
        if constant_of(matrix) is None or len(shape_of(matrix)) != 2 or len(shape_of(x)) < 2:
            if node.target is aten.addmm.default:
                raise Refused("the second matrix is computed")
            return None
        bias, residual = (None, None) if node.target is not aten.addmm.default else self._addend(given, node)
        return x, self._transposed(matrix, node), bias, residual, "none", 0.0

    def _addend(self, given: dict[str, Any], node: Node) -> tuple[Node | None, Node | None]:
        """The first argument of ``addmm`` as (bias, residual), one of which is None."""
        addend = given["self"]
        if given["beta"] != 1 or given["alpha"] != 1:
            raise Refused(f"{node.name} has factors beta {given['beta']}, alpha {given['alpha']}")
        if dtype_of(addend) != dtype_of(node):
            raise Refused(f"{node.name} adds {dtype_of(addend)} to {dtype_of(node)}")
        if shape_of(addend) == shape_of(node)[1:]:
            return addend, None
        if shape_of(addend) == shape_of(node):
            return None, addend
        raise Refused(f"{node.name} adds {list(shape_of(addend))} to {list(shape_of(node))}")

    def _transposed(self, matrix: Node, before: Node) -> Node:
        """The constant matrix [K, N] as a constant [N, K]."""
        constant = constant_of(matrix)
        assert constant is not None
        if matrix.target not in self.transposed:
            node = insert_constant(self.graph_module, f"{matrix.target}_transposed", constant.t().contiguous(), before=before)
            self.transposed[matrix.target] = str(node.target)
            return node
        with self.graph_module.graph.inserting_before(before):
            node = self.graph_module.graph.get_attr(self.transposed[matrix.target])
        node.meta["val"] = fake_mode_of(self.graph_module).from_tensor(getattr(self.graph_module, str(node.target)), static_shapes=True)
        return node
