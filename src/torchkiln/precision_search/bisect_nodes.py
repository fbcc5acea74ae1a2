"""bisect_nodes: the first operator, and a smallest set of operators, that must stay in float32 for a tolerance to hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.fx import Node

from ..dtypes import precision_name
from ..errors import CompilerBug
from ..lower.keep_float32 import module_paths, shortest_names
from ..partition.support import location
from ..progress import progress
from ..settings import op_name
from .assignment import Assignment, Narrowing
from .ddmin import boundary, ddmin
from .simulation import Simulation

#: The scan that orders the operators looks at this many groups of neighbours at most.
MOST_GROUPS = 96


@dataclass(frozen=True)
class Culprit:
    """An operator that must stay in float32.

    Attributes:
        node: its node in the lowered graph.
        op: what it is ("aten.mul.Tensor").
        module: the module it belongs to; "" where capture kept none.
        where: the node and the line of the model's code that made it, as far as known.
        error_without: the error when all of the set but this one stay in float32; of the first operator: with it and all before it narrow.
        error_alone: the error when only this one is narrow.
    """

    node: str
    op: str
    module: str
    where: str
    error_without: float
    error_alone: float


@dataclass(frozen=True)
class Bisection:
    """What ``bisect`` found.

    Attributes:
        precision, tolerance: what was asked.
        operators: how many can compute in the precision.
        error: with all of them narrow, against float32 (relative L2; inf where infinities or NaNs arise).
        holds: whether that is within the tolerance; then ``first`` is None and ``smallest`` empty.
        first: the operator at which the tolerance breaks when operators are narrowed in order. Found by bisection: where the error grows with every
            operator it is the first one.
        smallest: operators that must stay in float32 together; none of them can be left out.
        error_kept: the error when these stay in float32.
        keep_float32: what to pass to ``torchkiln.compile`` for that.
        runs: how often the model was run (or a part of it).
    """

    precision: str
    tolerance: float
    operators: int
    error: float
    holds: bool
    first: Culprit | None
    smallest: tuple[Culprit, ...]
    error_kept: float
    keep_float32: tuple[str, ...]
    runs: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        from .render import render_bisection

        return render_bisection(self)


def bisect_nodes(narrowing: Narrowing, inputs: Sequence[torch.Tensor], precision: torch.dtype, tolerance: float) -> Bisection:
    """Bisect a program for ``inputs``. ``precision``: torch.float16, torch.bfloat16 or torch.int8, which needs the narrowing's calibrator."""
    progress("bisect: float32", 0, 0)
    search = _Search(narrowing, Simulation(narrowing, inputs), precision, tolerance)
    items = search.items
    error = search.error_kept([])
    name = precision_name(precision)
    if error <= tolerance:
        return Bisection(name, tolerance, len(items), error, True, None, (), error, (), search.simulation.runs)
    without = search.error_kept(items)
    if not without <= tolerance:
        raise CompilerBug(f"bisect: with every operator in float32 the error is {without:.3g}, more than the tolerance {tolerance:.3g}")
    first = search.first()
    smallest = search.smallest()
    kept = search.error_kept(smallest)
    culprits = tuple(search.culprit(item, search.error_kept([other for other in smallest if other is not item])) for item in smallest)
    progress("bisect", 1, 1)
    return Bisection(
        name,
        tolerance,
        len(items),
        error,
        False,
        search.culprit(items[first], search.error_kept(items[first + 1 :])),
        culprits,
        kept,
        tuple(shortest_names(smallest, items)),
        search.simulation.runs,
    )


class _Search:
    def __init__(self, narrowing: Narrowing, simulation: Simulation, precision: torch.dtype, tolerance: float) -> None:
        self.simulation = simulation
        self._precision = precision
        self._tolerance = tolerance
        self._graph_module = narrowing.program.graph_module
        self._layers = {layer.node: layer.name for layer in narrowing.int8_layers()} if precision is torch.int8 else {}
        self.items: list[Node] = list(self._layers) if precision is torch.int8 else narrowing.narrowed_nodes(precision)

    def error_kept(self, kept: Sequence[Node]) -> float:
        """The error when ``kept`` stay in float32 and the other operators are narrow."""
        names = frozenset(node.name for node in kept)
        if self._precision is torch.int8:
            int8 = frozenset(layer for node, layer in self._layers.items() if node.name not in names)
            return self.simulation.error(Assignment(torch.float32, names, int8))
        return self.simulation.error(Assignment(self._precision, names))

    def error_narrow(self, narrow: Sequence[Node]) -> float:
        """The error when only ``narrow`` are narrow."""
        chosen = set(narrow)
        return self.error_kept([node for node in self.items if node not in chosen])

    def first(self) -> int:
        """The index of an operator: with those before it narrow the tolerance holds, with it too it does not."""

        def breaks(count: int) -> bool:
            progress("bisect: first operator", 0, 0)
            return not self.error_kept(self.items[count:]) <= self._tolerance

        return boundary(len(self.items), breaks) - 1

    def smallest(self) -> list[Node]:
        """The operators by what each does alone; the fewest of that order that suffice; of those, none that can be left out."""
        order = self._by_sensitivity()
        steps = 0

        def holds(kept: Sequence[Node]) -> bool:
            nonlocal steps
            steps += 1
            progress("bisect: smallest set", steps, 0)
            return self.error_kept(kept) <= self._tolerance

        enough = order[: boundary(len(order), lambda count: holds(order[:count]))]
        places = {node: place for place, node in enumerate(self.items)}
        return sorted(ddmin(enough, holds), key=places.__getitem__)

    def _by_sensitivity(self) -> list[Node]:
        size = -(-len(self.items) // MOST_GROUPS)
        groups = [self.items[i : i + size] for i in range(0, len(self.items), size)]
        errors = []
        for done, group in enumerate(groups):
            progress("bisect: operators one by one", done, len(groups))
            errors.append(self.error_narrow(group))
        order = sorted(range(len(groups)), key=lambda index: -errors[index])
        return [node for index in order for node in groups[index]]

    def culprit(self, node: Node, error_without: float) -> Culprit:
        paths = module_paths(node)
        return Culprit(node.name, op_name(node.target), paths[-1] if paths else "", location(node), error_without, self.error_narrow([node]))
