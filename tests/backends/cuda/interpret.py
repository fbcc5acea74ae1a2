"""Run a recipe on the CPU (Triton's interpreter, which tests/conftest.py chooses, for kernels; torch for its own operators) and check it."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import torch

import torchkiln.fused_ops  # noqa: F401  (registers the dialect)
from torchkiln.backends.cuda.compile_kernel import load_source
from torchkiln.backends.cuda.recipe import Kernel, Launch, Problem, Recipe, Ref, Tactic, TensorSpec


def make(spec: TensorSpec, generator: torch.Generator, fill: float | None = None) -> torch.Tensor:
    """A random tensor with the spec's strides (or filled with a number), in a buffer of its own."""
    buffer = torch.full((max(spec.span, 1),), float("nan") if spec.dtype.is_floating_point else 0).to(spec.dtype)
    tensor = buffer.as_strided(spec.shape, spec.strides)
    if fill is not None:
        tensor.fill_(fill)
    elif spec.dtype.is_floating_point:
        tensor.copy_(torch.randn(spec.shape, generator=generator))
    else:
        tensor.copy_(torch.randint(0, 2, spec.shape, generator=generator))
    return tensor


def interpret_kernel(kernel: Kernel, grid: tuple[int, int, int], tensors: list[torch.Tensor]) -> None:
    """One launch under Triton's interpreter."""
    import triton
    from tests.backends.cuda.quick_interpreter import quicken

    quicken()
    if kernel.source:
        function = triton.jit(load_source(kernel))
    else:
        module, name = kernel.function.split(":")
        function = getattr(import_module(f"torchkiln.backends.cuda.kernels.{module}"), name)
    function[grid](*tensors, **dict(kernel.constants))


def interpret(recipe: Recipe, operands: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run a recipe over operands "x0", ..., "y0", ...; what torch allocates itself replaces the operand. Returns all operands."""
    held = dict(operands)
    generator = torch.Generator().manual_seed(1)
    for name, spec in recipe.scratch.items():
        held[f"scratch.{name}"] = make(spec, generator, fill=float("nan") if spec.dtype.is_floating_point else 77)
    for name, packed in recipe.packed.items():
        held[f"packed.{name}"] = packed.function(*[operands[o] for o in packed.operands]).contiguous()
    held["counters"] = torch.zeros(max(recipe.counters, 1), dtype=torch.int32)
    for launch in recipe.launches:
        if isinstance(launch, Launch):
            interpret_kernel(launch.kernel, launch.grid, [held[name] for name in launch.operands])
            continue

        def resolve(value: Any) -> Any:
            if isinstance(value, Ref):
                tensor = held[value.name]
                if value.shape or value.strides:
                    tensor = tensor.as_strided(value.shape, value.strides, tensor.storage_offset() + value.offset)
                return tensor
            return [resolve(v) for v in value] if isinstance(value, (list, tuple)) else value

        op: Any = torch.ops
        for part in launch.op.split("."):
            op = getattr(op, part)
        kwargs = {key: resolve(value) for key, value in launch.kwargs}
        if launch.out:
            op(*resolve(launch.args), **kwargs)
            continue
        results = op(*resolve(launch.args), **kwargs)
        for name, result in zip(launch.results, results if isinstance(results, (list, tuple)) else (results,), strict=False):
            if name:
                held[name] = result
    assert not held["counters"].any(), "the recipe must leave its counters at zero"
    return held


def reference(problem: Problem, inputs: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """The op in float32, outputs in the dtypes asked for."""
    op: Any = torch.ops
    for part in (problem.op if "." in problem.op else f"torchkiln.{problem.op}.default").split("."):
        op = getattr(op, part)
    arguments: list[Any] = []
    tensors = iter([t.float() if t is not None and t.is_floating_point() else t for t in inputs])
    for argument in op._schema.arguments:
        if re.match(r"(Optional\[)?Tensor\]?$", str(argument.type)):
            arguments.append(next(tensors))
        elif argument.name == "dtype" and "dtype" in problem.attributes:
            arguments.append(torch.float32)
        else:
            arguments.append(problem.attributes[argument.name])
    results = op(*arguments)
    return list(results) if isinstance(results, (list, tuple)) else [results]


def check(tactic: Tactic, problem: Problem, config: dict[str, Any], tolerance: float, seed: int = 0) -> list[torch.Tensor]:
    """The recipe's outputs, which are the reference's, on random inputs, every element written."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [None if spec is None else make(spec, generator) for spec in problem.inputs]
    operands = {f"x{i}": t for i, t in enumerate(inputs) if t is not None}
    operands |= {f"y{i}": make(spec, generator, fill=float("nan")) for i, spec in enumerate(problem.outputs)}
    recipe = tactic.recipe(problem, config)
    held = interpret(recipe, operands)
    for index, (expected, spec) in enumerate(zip(reference(problem, inputs), problem.outputs, strict=True)):
        got = held[f"y{index}"]
        assert (tuple(got.shape), got.dtype) == (spec.shape, spec.dtype)
        error = (got.float() - expected).norm() / expected.norm().clamp_min(1e-12)
        assert error <= tolerance, f"{tactic.name} {config}: y{index}: relative error {error:.3g}"
    return [held[f"y{index}"] for index in range(len(problem.outputs))]
