"""costs: what a problem must move and compute at least, for the roofline."""

from __future__ import annotations

from math import prod

from .recipe import Problem


def bytes_of(problem: Problem) -> int:
    """Each input read once, each output written once."""
    unique = {id(spec): spec.size_bytes for spec in (*problem.inputs, *problem.outputs) if spec is not None}
    return sum(unique.values())


def flops_of(problem: Problem) -> int:
    """Operations of matrix products and convolutions (a multiply-add is two); 0 for what only moves memory."""
    y = problem.outputs[0].shape
    if problem.op.startswith(("conv", "int8_conv")):
        x, weight = problem.inputs[0], problem.inputs[1]
        assert x is not None
        assert weight is not None
        if problem.attributes.get("transposed"):
            return 2 * prod(x.shape) * prod(weight.shape[1:])
        return 2 * prod(y) * prod(weight.shape[1:])
    if problem.op in ("linear", "int8_linear"):
        weight = problem.inputs[1]
        assert weight is not None
        return 2 * prod(y) * weight.shape[1]
    if problem.op == "attention":
        q, k = problem.inputs[:2]
        assert q is not None
        assert k is not None
        return 2 * prod(q.shape) * k.shape[2] + 2 * prod(y) * k.shape[2]
    if problem.op in ("aten.matmul.default", "aten.bmm.default", "aten.mm.default"):
        x = problem.inputs[0]
        assert x is not None
        return 2 * prod(y) * x.shape[-1]
    return 0
