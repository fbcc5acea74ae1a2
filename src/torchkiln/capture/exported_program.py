"""exported_program: an ExportedProgram as given by the user: its own inputs, and whether the asked ranges fit it."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import UserError
from ..inputs import Input
from .arguments import Arguments


def user_values(exported: ExportedProgram) -> list[Any]:
    """The FakeTensor (or constant) of each user input, in order."""
    nodes = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
    return [nodes[name].meta.get("val") if isinstance(name, str) and name in nodes else name for name in exported.graph_signature.user_inputs]


def default_arguments(exported: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``(inputs, kwarg_inputs)`` for a program compiled without any: its own examples, with the ranges of its dynamic dimensions.

    Raises UserError when it carries no examples, or a dimension has no upper bound.
    """
    if exported.example_inputs is None:
        raise UserError("inputs: this ExportedProgram carries no example inputs: give inputs=[torchkiln.Input(...)]")
    args, kwargs = exported.example_inputs
    fakes = iter(user_values(exported))

    def describe(value: Any) -> Any:
        fake = next(fakes, None)
        if not isinstance(value, torch.Tensor) or not isinstance(fake, torch.Tensor):
            return value
        lo, hi = zip(*(_range(exported, size) for size in fake.shape), strict=True) if fake.dim() else ((), ())
        if lo == hi:
            return value
        return Input(min_shape=lo, opt_shape=tuple(value.shape), max_shape=hi, dtype=value.dtype)

    from torch.utils._pytree import tree_map

    described_args, described_kwargs = tree_map(describe, (args, kwargs))
    return described_args, described_kwargs


def check_exported_program(exported: ExportedProgram, arguments: Arguments) -> None:
    """Raises UserError when the inputs asked for are not among the shapes and dtypes the program was exported for."""
    fakes = [v for v in user_values(exported) if isinstance(v, torch.Tensor)]
    if len(fakes) != len(arguments.inputs):
        raise UserError(f"inputs: the ExportedProgram takes {len(fakes)} tensors, got {len(arguments.inputs)}")
    for path, fake, spec in zip(arguments.structure.leaf_paths(), fakes, arguments.inputs, strict=True):
        if fake.dtype != spec.dtype:
            raise UserError(f"inputs: {path}: the program was exported with {fake.dtype}, got Input dtype {spec.dtype}: export it with that dtype")
        if fake.dim() != len(spec.opt_shape):
            raise UserError(f"inputs: {path}: the program was exported with rank {fake.dim()}, got shape {spec.opt_shape}")
        for d, size in enumerate(fake.shape):
            lo, hi = _range(exported, size, bounded=False)
            # torch.export reports 2 as the lower bound of a dimension that also runs at 1.
            if spec.min_shape[d] < (0 if lo <= 2 and lo != hi else lo) or spec.max_shape[d] > hi:
                raise UserError(
                    f"inputs: {path}: dimension {d}: the program was exported for sizes {lo} to {hi}, got {spec.min_shape[d]} to {spec.max_shape[d]}"
                    ": export it again with dynamic_shapes that cover them"
                )


def _range(exported: ExportedProgram, size: int | torch.SymInt, bounded: bool = True) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import bound_sympy

    bounds = bound_sympy(size.node.expr, dict(exported.range_constraints))
    if bounds.upper is int_oo or bounds.upper == int_oo:
        if bounded:
            raise UserError(
                "inputs: the ExportedProgram has a dynamic dimension without an upper bound: give inputs=[torchkiln.Input(min_shape=..., ...)]"
            )
        return int(bounds.lower), 2**62
    return int(bounds.lower), int(bounds.upper)
