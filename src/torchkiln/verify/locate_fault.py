"""locate_fault: the first operator whose result is outside the tolerance, for the message of a failed build."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule, Node

from ..backends.contract import Candidate
from ..engine.structure import Structure
from ..errors import TorchkilnError
from ..partition.extract import run_nodes
from ..partition.partition import TORCH
from ..partition.support import is_compute, location
from ..program import Program
from .parity import compare
from .verify import CheckPoint

if TYPE_CHECKING:
    from ..race.attempt import Builder

#: At most this many intermediate results are looked at (evenly spread), to bound memory.
MAX_VALUES = 400


def locate_fault(builder: Builder, program: Program, candidate: Candidate, point: CheckPoint, tolerance: float) -> str:
    """One sentence: which operator is first outside ``tolerance``.

    First the lowered graph itself is run in PyTorch: if that is already off, the fault is in lowering. Then the candidate is built once
    more with every operator's result as an output, and the results are compared in order with PyTorch's.
    """
    inputs = point.arguments.tensors
    lowered = _lowered_outputs(program, inputs)
    parity = compare(lowered, point.references)
    if candidate.backend == TORCH or parity.relative_error > tolerance:
        return (
            f"The lowered graph itself, run by PyTorch in its own dtypes, has relative error {parity.relative_error:.3g}: "
            "the fault is in lowering or the model."
        )
    nodes = _observed(program.graph_module)
    try:
        exposed, names = _expose(program, nodes)
        attempt = builder.for_program(exposed).build(candidate, demote_slow=False)
        outputs = attempt.engine(*point.arguments.args, **point.arguments.kwargs)
    except TorchkilnError as error:
        return f"The operator at fault could not be located: {str(error).splitlines()[0]}."
    by_name = {n.name: n for n in nodes}
    references = run_nodes(program.graph_module, inputs, set(nodes))
    for name, output in zip(names, outputs, strict=True):
        node = by_name[name]
        found = compare([output], [references[node]])
        if not found.relative_error <= tolerance:
            return f"First operator outside the tolerance: {location(node)}: {node.target}, relative error {found.relative_error:.3g}."
    return "No single operator is outside the tolerance when every result is looked at: the error builds up along the model."


def _lowered_outputs(program: Program, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.inference_mode():
        outputs = program.graph_module(*inputs)
    return [o for o in outputs if isinstance(o, torch.Tensor)]


def _observed(graph_module: GraphModule) -> list[Node]:
    nodes = [n for n in graph_module.graph.nodes if is_compute(n) and isinstance(n.meta.get("val"), torch.Tensor)]
    step = max(1, len(nodes) // MAX_VALUES)
    return nodes[::step]


def _expose(program: Program, nodes: list[Node]) -> tuple[Program, list[str]]:
    """The program with the results of ``nodes`` as its outputs."""
    module = copy.deepcopy(program.graph_module)
    own = {n.name: n for n in module.graph.nodes}
    output = module.graph.output_node()
    output.args = (tuple(own[n.name] for n in nodes),)
    module.recompile()
    structure, _ = Structure.of(tuple(torch.empty(0) for _ in nodes))
    names = [n.name for n in nodes]
    return replace(program, graph_module=module, outputs_structure=structure, output_names=tuple(names)), names
