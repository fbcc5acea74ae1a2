"""mark_two_of_four: tell tactics which constant weights are 2:4, so that problems and timings with and without the pattern are kept apart."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...sparsity.pattern import is_two_of_four
from .recipe import Problem
from .trace import Operation, Trace

#: The attribute of a marked problem: its second input has the pattern.
TWO_OF_FOUR = "two_of_four"


def mark_two_of_four(traced: Trace) -> int:
    """Mark, in place, the linear layers and convolutions whose floating weights have the pattern, as they are in the engine's precision. Returns how
    many."""
    count = 0
    for operation in traced.operations:
        problem = operation.problem
        weight = weight_of(operation, traced)
        if weight is not None and weight.is_floating_point() and is_two_of_four(weight):
            operation.problem = replace(problem, attributes={**problem.attributes, TWO_OF_FOUR: True})
            count += 1
    return count


def has_weight(problem: Problem) -> bool:
    """Whether the problem is a linear layer or a convolution with a constant weight [out, in, *kernel] as its second input."""
    is_layer = problem.op in ("linear", "int8_linear") or problem.op.startswith(("conv", "int8_conv"))
    return is_layer and len(problem.constants) > 1 and problem.constants[1] and not problem.attributes.get("transposed", False)


def weight_of(operation: Operation, traced: Trace) -> torch.Tensor | None:
    """The weight of a problem that ``has_weight``; None for others."""
    if not has_weight(operation.problem):
        return None
    value = operation.inputs[1]
    assert value is not None
    tensor = traced.constants[value.storage.name]
    return tensor.as_strided(value.spec.shape, value.spec.strides, tensor.storage_offset() + value.offset)
