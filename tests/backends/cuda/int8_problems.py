"""Problems of int8 operators, and their check: a result differs from the reference at most where a value lies between two integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tests.backends.cuda.interpret import interpret, make
from tests.backends.cuda.problems import nhwc

from torchkiln.backends.cuda.int8_samples import sample_operands
from torchkiln.backends.cuda.recipe import Problem, Tactic, TensorSpec
from torchkiln.backends.cuda.run_recipe import find_op
from torchkiln.dtypes import parse_dtype

FLOAT_TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6}


def _problem(op: str, x: TensorSpec, weight: TensorSpec, y: TensorSpec, attributes: dict[str, Any], **how: Any) -> Problem:
    bias, residual, activation, low, capability = (how.get(n) for n in ("bias", "residual", "activation", "low", "capability"))
    one = TensorSpec.contiguous((), torch.float32)
    columns = (weight.shape[0],)
    inputs = (
        x,
        weight,
        TensorSpec.contiguous(columns, torch.float32),
        TensorSpec.contiguous(columns, bias) if bias is not None else None,
        TensorSpec(y.shape, y.strides, residual) if residual is not None else None,
        one if residual is torch.int8 else None,
        one if y.dtype is torch.int8 else None,
    )
    attributes |= {"activation": activation or "none", "alpha": how.get("alpha", 0.0), "low": low if low is not None else -128, "high": 127}
    attributes["dtype"] = str(y.dtype).removeprefix("torch.")
    return Problem(op, inputs, (y,), attributes, (False, True, True, True, False, True, True), "ieee", capability or 80)


def int8_conv_problem(
    x: Sequence[int],
    weight: Sequence[int],
    dtype: torch.dtype = torch.int8,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    channels_last: bool = True,
    **how: Any,
) -> Problem:
    """An int8 convolution of one to three dimensions. ``bias`` and ``residual`` are dtypes, None for none."""
    rank = len(x) - 2
    geometry: dict[str, Any] = {"stride": [stride] * rank, "padding": [padding] * rank, "dilation": [dilation] * rank}
    meta = torch.nn.functional
    shape = getattr(meta, f"conv{rank}d")(torch.empty(x, device="meta"), torch.empty(weight, device="meta"), None, **geometry).shape
    lay = nhwc if channels_last else TensorSpec.contiguous
    how = {"bias": torch.float32, **how}
    return _problem("int8_conv", lay(x, torch.int8), TensorSpec.contiguous(weight, torch.int8), lay(tuple(shape), dtype), geometry, **how)


def int8_linear_problem(x: Sequence[int], features: int, dtype: torch.dtype = torch.int8, **how: Any) -> Problem:
    """x: int8 [..., K] times a weight [features, K]."""
    y = TensorSpec.contiguous((*x[:-1], features), dtype)
    weight = TensorSpec.contiguous((features, x[-1]), torch.int8)
    return _problem("int8_linear", TensorSpec.contiguous(x, torch.int8), weight, y, {}, **{"bias": torch.float32, **how})


def reference(problem: Problem, inputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
    op = find_op(f"torchkiln.{problem.op}.default")
    tensors = iter(inputs)
    attributes = {**problem.attributes, "dtype": parse_dtype(problem.attributes["dtype"])}
    return op(*[next(tensors) if "Tensor" in str(a.type) else attributes[a.name] for a in op._schema.arguments])


def check_int8(tactic: Tactic, problem: Problem, config: dict[str, Any], seed: int = 0) -> torch.Tensor:
    """The recipe's result is the reference's, on random integers, every element written. Returns it."""
    generator = torch.Generator().manual_seed(seed)
    operands = {f"x{i}": make(spec, generator) for i, spec in enumerate(problem.inputs) if spec is not None}
    sample_operands(f"torchkiln.{problem.op}.default", operands, generator)
    spec = problem.outputs[0]
    fill = float("nan") if spec.dtype.is_floating_point else -77
    held = interpret(tactic.recipe(problem, config), {**operands, "y0": make(spec, generator, fill=fill)})
    got = held["y0"]
    expected = reference(problem, [operands.get(f"x{i}") for i in range(len(problem.inputs))])
    assert (tuple(got.shape), got.dtype) == (spec.shape, spec.dtype)
    if spec.dtype is torch.int8:
        difference = (got.int() - expected.int()).abs()
        assert difference.max() <= 1, f"{tactic.name} {config}: {difference.max()} apart"
        assert (difference > 0).float().mean() <= 2e-3
        assert len(expected.unique()) > 20, "the check needs values that are not all clipped"
    else:
        error = (got.double() - expected.double()).norm() / expected.double().norm()
        assert error <= FLOAT_TOLERANCE[spec.dtype], f"{tactic.name} {config}: relative error {error:.3g}"
    return got
