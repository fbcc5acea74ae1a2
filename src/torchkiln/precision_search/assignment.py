"""assignment: which precision each part of a program has, and the graphs that say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from ..backends.copy_graph_module import copy_graph_module
from ..lower.convert_precision import convert_precision
from ..lower.keep_float32 import is_kept_float32, keep_float32, moves_only
from ..partition.support import is_compute
from ..program import Program
from ..quantize.calibrator import Calibrator
from ..quantize.layers import Layer, find_layers
from ..quantize.options import QuantizeOptions
from ..quantize.quantize_program import QuantizedProgram, copy_graph, quantize_program


@dataclass(frozen=True)
class Assignment:
    """Who computes in what.

    Attributes:
        precision: what every node that is not named below computes in, as far as convert_precision's rules let it.
        kept: names of the nodes that stay in float32.
        int8: names of the layers that become int8.
    """

    precision: torch.dtype
    kept: frozenset[str] = frozenset()
    int8: frozenset[str] = frozenset()


class Narrowing:
    """Makes programs and graphs of assignments.

    Args:
        program: lowered, in float32; never changed. What is marked in it stays marked.
        calibrator: where the ranges of int8 come from; None without int8.
        unsigned: see insert_quantize.
    """

    def __init__(self, program: Program, calibrator: Calibrator | None = None, *, unsigned: bool = False) -> None:
        self.program = program
        self._calibrator = calibrator
        self._unsigned = unsigned

    def int8_layers(self) -> list[Layer]:
        """The layers that may become int8, by the calibrator's options and marks of the program."""
        if self._calibrator is None:
            return []
        options = self._calibrator.options or self._calibrator.calibrate(self.program).options
        layers = find_layers(self.program.graph_module, options or QuantizeOptions())
        return [layer for layer in layers if layer.is_quantized and not is_kept_float32(layer.node)]

    def programs(self, assignment: Assignment) -> tuple[Program, QuantizedProgram | None]:
        """The program with its marks, and its quantized form; None without int8 layers."""
        marked = replace(self.program, graph_module=copy_graph(self.program.graph_module), notes=list(self.program.notes))
        keep_float32(node for node in marked.graph_module.graph.nodes if node.name in assignment.kept)
        if not assignment.int8:
            return marked, None
        assert self._calibrator is not None
        return marked, quantize_program(marked, self._calibrator, unsigned=self._unsigned, only=assignment.int8)

    def graph(self, assignment: Assignment) -> GraphModule:
        """The graph as a backend would compile it, to be run in PyTorch."""
        marked, quantized = self.programs(assignment)
        graph_module = marked.graph_module if quantized is None else quantized.program.graph_module
        if assignment.precision is not torch.float32:
            graph_module = copy_graph_module(graph_module)
            convert_precision(graph_module, assignment.precision)
        return graph_module

    def narrowed_nodes(self, dtype: torch.dtype) -> list[Node]:
        """The operators that compute in ``dtype`` when nothing more is kept, in the graph's order. Views that follow one of them go with it."""
        converted = {node.name: node for node in self.graph(Assignment(dtype)).graph.nodes}
        nodes = [node for node in self.program.graph_module.graph.nodes if is_compute(node) and _is_low(converted.get(node.name), dtype)]
        own = set(nodes)
        return [node for node in nodes if not (moves_only(node) and node.args[0] in own)]


def _is_low(node: Node | None, dtype: torch.dtype) -> bool:
    return node is not None and any(_dtype_of(n) is dtype for n in (node, *node.all_input_nodes))


def _dtype_of(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    values: Iterable[object] = value if isinstance(value, (tuple, list)) else (value,)
    return next((v.dtype for v in values if isinstance(v, torch.Tensor) and v.dtype.is_floating_point), None)
