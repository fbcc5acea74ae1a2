"""rules: the registry of how each pointwise operator of core ATen is written in Triton: ``RULES``, from the overload to a function of a ``Call``.

Values of float16 and bfloat16 nodes are float32 and are rounded when stored, or when a rule asks for ``exact``: where an operator jumps
(comparisons, floor, conversions to integers), so that it jumps where torch's does. Integers, booleans and float64 are computed as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

HALVES = (torch.float16, torch.bfloat16)

#: dtype -> its name in Triton.
TYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "int1",
}


class Unsupported(Exception):
    """Why a node cannot be written."""


class Call(Protocol):
    """A node as its rule sees it; ``dtype`` is its result's."""

    dtype: torch.dtype

    def __call__(self, name: str, dtype: torch.dtype | None = None, exact: bool = False, channel: bool = False) -> str:
        """The argument's value in a dtype (the node's own). ``channel``: its one dimension is the node's dimension 1."""
        ...

    def value(self, name: str) -> Any:
        """The argument as it stands in the graph: a Node, a number, None."""
        ...

    def own_dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor argument."""
        ...

    def common(self) -> torch.dtype:
        """What torch promotes ``self`` and ``other`` to."""
        ...


Rule = Callable[[Call], str]
RULES: dict[Any, Rule] = {}


def register(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for overloads "add.Tensor add.Scalar"; those that this torch does not have are left out."""

    def add(rule: Rule) -> Rule:
        for name in names.split():
            packet, overload = name.split(".")
            target = getattr(getattr(torch.ops.aten, packet, None), overload, None)
            if target is not None:
                RULES[target] = rule
        return rule

    return add


def literal(value: float | int | bool, dtype: torch.dtype) -> str:
    """A constant of the type in which values of ``dtype`` are computed."""
    if dtype == torch.bool:
        return f"tl.full([], {bool(value)}, tl.int1)"
    if not dtype.is_floating_point:
        return f"tl.full([], {int(value)}, tl.{TYPES[dtype]})"
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    number = torch.tensor(float(value), dtype=torch.float64).to(wide).item()
    text = repr(number) if number - number == 0 else f'float("{number}")'
    return f"tl.full([], {text}, tl.{TYPES[wide]})"


def need_floating(c: Call) -> None:
    if not c.dtype.is_floating_point:
        raise Unsupported(f"of {c.dtype} values")


def need_number(c: Call) -> None:
    if c.dtype == torch.bool:
        raise Unsupported("of booleans")


def precise(c: Call) -> bool:
    """Whether float32's accuracy is wanted: see functions.py."""
    return c.dtype == torch.float32


def unary(form: str) -> Rule:
    """Floating operators; integers are converted to the node's dtype first, as torch does. ``{p}``: PRECISE."""

    def rule(c: Call) -> str:
        need_floating(c)
        return form.format(c("self"), p=precise(c))

    return rule


def register_table(table: dict[str, str], make: Callable[[str], Rule]) -> None:
    """``make(form)`` for each ``names: form``."""
    for names, form in table.items():
        register(names)(make(form))
