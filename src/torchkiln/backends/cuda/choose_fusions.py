"""choose_fusions: which of the fusions that do not always pay do so here, by measuring the operations with and without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
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
    """A fused graph as operations.

    Attributes:
        passes: the optional passes that it has gone through.
        rejects: (node or pass, reason): what was nearly fused, and what does not pay.
    """

    passes: tuple[str, ...]
    traced: Trace
    rejects: list[tuple[str, str]]


def choose_fusions(
    graph_module: GraphModule, trace: Callable[[GraphModule], Trace], tune: Callable[[Sequence[Operation]], list[Choice]]
) -> tuple[Fused, list[Choice]]:
    """``graph_module``, which has gone through all but the optional passes, with those of them that make it faster; and the choices for it.

    Each optional pass is weighed alone, against the graph without any.
    """
    plain = Fused((), trace(_fork(graph_module)), _rejects(graph_module))
    weighed = [_apply(graph_module, (one,), trace) for one in OPTIONAL_PASSES]
    changed = [fused for fused in weighed if fused.passes]
    everything = [plain, *changed]
    counts = [len(fused.traced.operations) for fused in everything]
    choices = tune([operation for fused in everything for operation in fused.traced.operations])
    parts = [choices[start:end] for start, end in pairwise(accumulate([0, *counts]))]
    without = cost_us(parts[0])
    paying, left = [], list[tuple[str, str]]()
    for fused, own in zip(changed, parts[1:], strict=True):
        (name,) = fused.passes
        log(STEPS, "cuda: %s: %.1f us with it, %.1f us without", name, cost_us(own), without)
        if cost_us(own) < without:
            paying.append(name)
        else:
            left.append((name, f"does not pay: the operations take {cost_us(own):.1f} us with it, {without:.1f} us without"))
    best = next((index for index, fused in enumerate(everything) if list(fused.passes) == paying), None)
    if best is not None:
        found, chosen = everything[best], parts[best]
    else:
        found = _apply(graph_module, tuple(one for one in OPTIONAL_PASSES if one.__name__ in paying), trace)
        chosen = tune(found.traced.operations)
    seen = dict.fromkeys(reject for fused in (plain, *weighed) for reject in fused.rejects)
    return Fused(found.passes, found.traced, [*seen, *left]), chosen


def cost_us(choices: Sequence[Choice]) -> float:
    """What operations take one after another in a CUDA graph, about; infinite when one of them could not be measured."""
    return sum((inf if choice.median_us is None else choice.median_us) + LAUNCH_US * len(choice.option.recipe.launches) for choice in choices)


def _apply(graph_module: GraphModule, passes: tuple[Callable[[GraphModule], int], ...], trace: Callable[[GraphModule], Trace]) -> Fused:
    """A copy that has gone through ``passes``; its ``passes`` are those that changed something."""
    fork = _fork(graph_module)
    changed = tuple(name for name, count in fuse(fork, passes) if count)
    return Fused(changed, trace(fork) if changed else Trace([], [], []), _rejects(fork))


def _rejects(graph_module: GraphModule) -> list[tuple[str, str]]:
    return [(node.name, reason) for node, reason in graph_module.meta.get("rejects", [])]


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
