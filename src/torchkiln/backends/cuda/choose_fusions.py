"""choose_fusions: whether the fusions that do not always pay do so here, by measuring the operations with and without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from torch.fx import Graph, GraphModule

from ...log import STEPS, log
from .passes.pipeline import OPTIONAL_PASSES, fuse
from .trace import Operation, Trace
from .tuner import Choice

#: What a launch costs in a CUDA graph besides its own time, in microseconds: a kernel waits for the one in front to end.
LAUNCH_US = 1.0


@dataclass
class Fused:
    """A fused graph as operations, and the choices for them.

    Attributes:
        passes: the optional passes that it has gone through.
        rejects: (node or pass, reason): what was nearly fused, and what does not pay.
    """

    passes: tuple[str, ...]
    traced: Trace
    choices: list[Choice]
    rejects: list[tuple[str, str]]


def choose_fusions(graph_module: GraphModule, trace: Callable[[GraphModule], Trace], tune: Callable[[Sequence[Operation]], list[Choice]]) -> Fused:
    """``graph_module``, which has gone through all but the optional passes: as it is, or with these where that makes its operations faster."""
    plain, further = _fork(graph_module), _fork(graph_module)
    changed = tuple(name for name, count in fuse(further, OPTIONAL_PASSES) if count)
    rejects = [(node.name, reason) for node, reason in further.meta["rejects"]]
    without = trace(plain)
    if not changed:
        return Fused((), without, tune(without.operations), rejects)
    those = trace(further)
    choices = tune([*without.operations, *those.operations])
    count = len(without.operations)
    as_it_is, fused = Fused((), without, choices[:count], rejects), Fused(changed, those, choices[count:], rejects)
    times = f"{cost_us(fused.choices):.1f} us with it, {cost_us(as_it_is.choices):.1f} us without"
    log(STEPS, "cuda: %s: %s", ", ".join(changed), times)
    if cost_us(fused.choices) < cost_us(as_it_is.choices):
        return fused
    rejects += [(name, f"does not pay: the operations take {times}") for name in changed]
    return as_it_is


def cost_us(choices: Sequence[Choice]) -> float:
    """What operations take one after another in a CUDA graph, about; infinite when one of them could not be measured."""
    return sum((inf if choice.median_us is None else choice.median_us) + LAUNCH_US * len(choice.option.recipe.launches) for choice in choices)


def _fork(graph_module: GraphModule) -> GraphModule:
    """A copy of the graph over the same weights."""
    graph = Graph()
    output = graph.graph_copy(graph_module.graph, {})
    graph.output(output)
    old_output = next(node for node in graph_module.graph.nodes if node.op == "output")
    next(node for node in graph.nodes if node.op == "output").meta = dict(old_output.meta)
    fork = GraphModule(graph_module, graph)
    fork.meta = dict(graph_module.meta) | {"rejects": list(graph_module.meta.get("rejects", []))}
    return fork
