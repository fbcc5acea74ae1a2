"""shapes: ``--shape 2x3x224x224``, ``--shape ids:1x128@int64`` and ``--min-shape/--opt-shape/--max-shape`` -> Inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..dtypes import parse_dtype
from ..errors import UserError
from ..inputs import Input

_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_][A-Za-z0-9_.]*):)?(?P<shape>scalar|\d+(?:x\d+)*)(?:@(?P<dtype>\w+))?")


_SIZES = r"\d+(?:x\d+)*"
_PROFILE = re.compile(rf"(?P<name>[A-Za-z_][A-Za-z0-9_.]*)=(?P<min>{_SIZES}):(?P<opt>{_SIZES}):(?P<max>{_SIZES})")


def parse_profile(text: str) -> dict[str, tuple[tuple[int, ...], ...]]:
    """``"x=1x3:4x3:8x3,y=..."`` -> {"x": ((1, 3), (4, 3), (8, 3)), ...}: one optimization profile. Raises UserError."""
    profile: dict[str, tuple[tuple[int, ...], ...]] = {}
    for part in text.split(","):
        match = _PROFILE.fullmatch(part.strip())
        if match is None:
            raise UserError(f"profile {part!r}: expected NAME=MIN:OPT:MAX, as x=1x3x224x224:4x3x224x224:8x3x224x224")
        if match["name"] in profile:
            raise UserError(f"profile {text!r}: input {match['name']!r} is given twice")
        profile[match["name"]] = tuple(tuple(int(size) for size in match[bound].split("x")) for bound in ("min", "opt", "max"))
    return profile


@dataclass(frozen=True)
class ShapeSpec:
    """One shape as written. ``dtype`` is None when it is not given."""

    text: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None


def parse_shape(text: str) -> ShapeSpec:
    """``"ids:1x128@int64"`` -> its name (may be ""), shape and dtype. Raises UserError."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"shape {text!r}: expected sizes joined by x, as 1x3x224x224, name:1x3x224x224 or ids:1x128@int64 ('scalar' for no dimensions)"
        )
    sizes = match["shape"]
    shape = () if sizes == "scalar" else tuple(int(s) for s in sizes.split("x"))
    return ShapeSpec(text, match["name"] or "", shape, parse_dtype(match["dtype"]) if match["dtype"] else None)


def parse_inputs(
    shapes: Sequence[str], min_shapes: Sequence[str] = (), opt_shapes: Sequence[str] = (), max_shapes: Sequence[str] = ()
) -> list[Input]:
    """The Inputs that the shape options describe, in the order they were written; [] when there are none.

    Raises UserError when a range is incomplete, names repeat, or names and positions are mixed so that the order is unclear.
    """
    fixed = [parse_shape(t) for t in shapes]
    ranged = [[parse_shape(t) for t in texts] for texts in (min_shapes, opt_shapes, max_shapes)]
    inputs = [Input(s.shape, dtype=s.dtype, name=s.name) for s in fixed]
    inputs += [_range(*specs) for specs in _aligned(*ranged)]
    names = [i.name for i in inputs]
    if len(inputs) > 1 and any(names):
        for i in inputs:
            if not i.name:
                raise UserError(f"shapes: either name every input or none: {i} has no name")
            if names.count(i.name) > 1:
                raise UserError(f"shapes: input {i.name!r} is given {names.count(i.name)} times")
    if fixed and any(ranged) and not all(names):
        raise UserError(
            "shapes: with both --shape and --min-shape/--opt-shape/--max-shape, name every input (name:1x3x224x224) to say which is which"
        )
    return inputs


def _aligned(lows: list[ShapeSpec], opts: list[ShapeSpec], highs: list[ShapeSpec]) -> list[tuple[ShapeSpec, ShapeSpec, ShapeSpec]]:
    """The three shapes of each input: by name, or by position when there are no names."""
    if not len(lows) == len(opts) == len(highs):
        raise UserError(
            f"shapes: give --min-shape, --opt-shape and --max-shape once each for every input; got {len(lows)}, {len(opts)} and {len(highs)} of them"
        )
    by_name = [{s.name: s for s in specs} for specs in (opts, highs)]
    aligned = []
    for position, low in enumerate(lows):
        if not low.name:
            aligned.append((low, opts[position], highs[position]))
            continue
        opt, high = (table.get(low.name) for table in by_name)
        if opt is None or high is None:
            raise UserError(f"shapes: input {low.name!r} has --min-shape but no {'--opt-shape' if opt is None else '--max-shape'} of that name")
        aligned.append((low, opt, high))
    return aligned


def _range(low: ShapeSpec, opt: ShapeSpec, high: ShapeSpec) -> Input:
    dtypes = {s.dtype for s in (low, opt, high) if s.dtype is not None}
    if len(dtypes) > 1:
        raise UserError(f"shapes: {low.text}, {opt.text} and {high.text} are one input and differ in dtype")
    if len({s.name for s in (low, opt, high)}) > 1:
        raise UserError(f"shapes: {low.text}, {opt.text} and {high.text} stand in the same place and differ in name")
    return Input(min_shape=low.shape, opt_shape=opt.shape, max_shape=high.shape, dtype=dtypes.pop() if dtypes else None, name=low.name)
