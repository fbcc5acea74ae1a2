"""copies: the tactic of constant padding and of rolling: output index to input index, or the fill value."""

from __future__ import annotations

from collections.abc import Sequence

from ..recipe import Config, Kernel, Launch, Problem, Recipe, Tactic
from .generate import FlatIndex, flat_configs, kernel_source
from .layout import merge_axes
from .rules import TYPES, literal

_PADS = ("aten.constant_pad_nd.default", "aten.pad.default")


class PadRoll:
    """One kernel over the output's elements, in the order of its strides. Dimensions that are neither padded nor rolled are merged."""

    name = "pad_roll"
    ops: tuple[str, ...] = (*_PADS, "aten.roll.default")

    def reject(self, problem: Problem) -> str:
        x, y = problem.inputs[0], problem.outputs[0]
        if x is None or x.dtype not in TYPES or x.dtype != y.dtype:
            return f"no copy of {None if x is None else x.dtype} to {y.dtype}"
        if max(x.span, y.span) >= 2**31:
            return "2**31 elements or more"
        attributes = problem.attributes
        if problem.op in _PADS:
            if attributes.get("mode", "constant") != "constant":
                return f"padding mode {attributes['mode']}"
            if any(amount < 0 for amount in attributes["pad"]):
                return "a negative pad (a slice)"
            if x.numel == 0:
                return "an empty input"
        elif not attributes.get("dims") and len(x.shape) != 1:
            return "roll of the flattened tensor"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        return flat_configs(problem.outputs[0].numel, problem.outputs[0].dtype.itemsize, level)

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, y = problem.inputs[0], problem.outputs[0]
        assert x is not None
        if y.numel == 0:
            return Recipe(())
        shifts = _shifts(problem, y.shape)
        is_roll = problem.op == "aten.roll.default"
        moved = [d for d in range(len(y.shape)) if shifts[d] or x.shape[d] != y.shape[d]]
        axes = merge_axes(y.shape, (y.strides, x.strides), apart=moved)
        writer = FlatIndex(axes, config)
        lines = writer.start("tl.int64" if axes.numel + config["BLOCK"] >= 2**31 else "")
        inside = "inside" if axes.numel % config["BLOCK"] else ""
        conditions = [inside] if inside else []
        coordinates = [f"c{axis}" for axis in range(len(axes.sizes))]
        for axis, dims in enumerate(axes.dims):
            d = dims[0]
            if d not in moved:
                continue
            writer.constants += [(f"SHIFT{axis}", shifts[d]), (f"FROM{axis}", x.shape[d])]
            lines.append(f"s{axis} = c{axis} - SHIFT{axis}")
            if is_roll:
                lines.append(f"s{axis} = tl.where(s{axis} < 0, s{axis} + FROM{axis}, s{axis})")
            else:
                conditions.append(f"(s{axis} >= 0) & (s{axis} < FROM{axis})")
            coordinates[axis] = f"s{axis}"
        valid = " & ".join(conditions)
        fill = "" if is_roll else f", other={literal(problem.attributes.get('value') or 0, y.dtype)}"
        lines.append(f"value = tl.load({_place(writer, 'x0', axes.strides[1], coordinates)}" + (f", mask={valid}{fill})" if valid else ")"))
        index = [f"c{axis}" for axis in range(len(axes.sizes))]
        lines.append(f"tl.store({_place(writer, 'y0', axes.strides[0], index)}, value" + (f", mask={inside})" if inside else ")"))
        constants = [*writer.constants, ("PDL", problem.capability >= 90)]
        source = kernel_source("pad_roll", ("x0", "y0"), [name for name, _ in constants], (), lines)
        kernel = Kernel("pad_roll", (x.dtype, y.dtype), tuple(constants), config["num_warps"], 2, source)
        return Recipe((Launch(kernel, (writer.programs, 1, 1), ("x0", "y0")),))


def _shifts(problem: Problem, shape: Sequence[int]) -> list[int]:
    """For each dimension, how far behind its source an element lands: the padding before, or the roll in [0, size)."""
    shifts = [0] * len(shape)
    attributes = problem.attributes
    if problem.op in _PADS:
        for index, before in enumerate(attributes["pad"][::2]):
            shifts[len(shape) - 1 - index] = before
        return shifts
    amounts, dims = attributes["shifts"], attributes.get("dims") or [0]
    for amount, dim in zip(amounts, dims, strict=True):
        if shape[dim]:
            shifts[dim] = (shifts[dim] + amount) % shape[dim]
    return shifts


def _place(writer: FlatIndex, name: str, strides: Sequence[int], coordinates: Sequence[str]) -> str:
    writer.constants += [(f"{name}_stride{axis}", stride) for axis, stride in enumerate(strides)]
    return " + ".join([name, *[f"{c} * {name}_stride{axis}" for axis, c in enumerate(coordinates)]])


TACTICS: tuple[Tactic, ...] = (PadRoll(),)
