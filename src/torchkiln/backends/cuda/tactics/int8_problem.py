"""int8_problem: an "int8_conv" or "int8_linear" problem as the floating one of the same shapes, and the operands of its kernels."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..recipe import FLOATS, MAX_ELEMENTS, Problem, TensorSpec

INT8_OPS = ("int8_conv", "int8_linear")

#: Positions of the operands.
_BIAS, _RESIDUAL, _RESIDUAL_SCALE, _INVERSE = 3, 4, 5, 6


def plain_problem(problem: Problem) -> Problem:
    """The "conv" or "linear" problem of the same shapes, strides and attributes: what asks for a geometry reads it."""
    x, weight, bias, residual = problem.inputs[0], problem.inputs[1], problem.inputs[_BIAS], problem.inputs[_RESIDUAL]
    constants = problem.constants
    given = (constants[0], constants[1], constants[_BIAS], constants[_RESIDUAL])
    if problem.op == "int8_linear":
        return replace(problem, op="linear", inputs=(x, weight, bias, residual), constants=given)
    attributes = {**problem.attributes, "groups": 1, "transposed": False, "output_padding": [0] * len(problem.attributes["stride"])}
    return replace(problem, op="conv", inputs=(x, weight, bias, residual, None), constants=(*given, False), attributes=attributes)


def int8_reject(problem: Problem) -> str:
    """Why no int8 kernel takes a problem of ``INT8_OPS``; "" when some may."""
    if not problem.constants[1]:
        return "the weight is computed: it cannot be laid out at build time"
    for name, spec in (("x", problem.inputs[0]), ("the weight", problem.inputs[1])):
        assert spec is not None
        if spec.dtype is not torch.int8:
            return f"{name} is {spec.dtype}, not int8"
    bias, residual, residual_scale = problem.inputs[_BIAS : _RESIDUAL_SCALE + 1]
    y = problem.outputs[0]
    if y.dtype not in (torch.int8, *FLOATS):
        return f"writes int8, fp16, bf16 and fp32, not {y.dtype}"
    if bias is not None and (bias.dtype not in FLOATS or bias.shape != problem.inputs[2].shape):  # type: ignore[union-attr]
        return f"a bias of {bias.dtype} {list(bias.shape)}"
    if bias is not None and not bias.is_contiguous:
        return "a bias whose elements do not lie next to each other"
    if residual is not None and residual.dtype not in ((torch.int8,) if residual_scale is not None else FLOATS):
        return f"a residual of {residual.dtype}"
    if any(spec is not None and spec.span > MAX_ELEMENTS for spec in (*problem.inputs, *problem.outputs)):
        return "a tensor of more than 2**31 elements"
    return ""


def int8_operands(problem: Problem) -> tuple[tuple[str, ...], tuple[torch.dtype, ...]]:
    """What the pointers x, w, scales, bias, residual, residual_scale, inverse and y of a kernel are, and their dtypes. What is left out is x."""
    names = ["x0", "packed.weight", "x2", *(f"x{i}" if problem.inputs[i] is not None else "x0" for i in range(_BIAS, _INVERSE + 1)), "y0"]
    dtypes = {f"x{i}": spec.dtype for i, spec in enumerate(problem.inputs) if spec is not None}
    dtypes |= {"packed.weight": torch.int8, "y0": problem.outputs[0].dtype}
    return tuple(names), tuple(dtypes[name] for name in names)


def int8_constants(problem: Problem) -> dict[str, object]:
    """The arguments of a kernel's epilogue."""
    return {
        "ACTIVATION": problem.attributes["activation"],
        "ALPHA": float(problem.attributes["alpha"]),
        "LOW": problem.attributes["low"],
        "HIGH": problem.attributes["high"],
    }


def int8_in_place(problem: Problem) -> tuple[tuple[str, str], ...]:
    """The result may take the memory of a residual that lies alike: a program reads of it, before it writes, what it writes."""
    residual, y = problem.inputs[_RESIDUAL], problem.outputs[0]
    return ((f"x{_RESIDUAL}", "y0"),) if residual == y else ()


def has_residual_scale(problem: Problem) -> bool:
    return problem.inputs[_RESIDUAL_SCALE] is not None


def residual_of(problem: Problem) -> TensorSpec | None:
    return problem.inputs[_RESIDUAL]


def has_bias(problem: Problem) -> bool:
    return problem.inputs[_BIAS] is not None
