"""convert_precision: a float32 graph that computes in fp16 or bf16, with float32 where the numbers need it.

The graph's inputs and outputs keep their dtypes. Weights are converted once, and stored low. Every value exists in the precision
its operator computes in; the other one is made by a single cast when somebody asks for it, so that neighbours in float32 pass values
without rounding (an exponential into a sum, a mean of squares into a reciprocal root, a masked score into a softmax).

Operators with no precision of their own follow their inputs, each of which leans somewhere (Lean):

* activations, that is what derives from inputs of rank 2 and more, lean LOW;
* constants and fills lean nowhere, and take the precision of what they meet;
* integers made floating, the model's own casts, reductions, masks, inputs of rank 0 and 1 (a time step a sample) and what derives from them
  alone lean WIDE: position tables, time embeddings, masks and statistics need the digits, and are mostly small. Where one meets an
  activation, the operator computes in float32, and its result leans LOW again.

A node that keep_float32.py has marked computes in float32; its result leans as it would without the mark.
"""

from __future__ import annotations

import operator
from enum import Enum
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from ..quantized_ops import is_dequantize
from .graph_edit import constant_of, insert_call, insert_constant
from .keep_float32 import is_kept_float32
from .low_range import clamp_tensor, exceeds_range, has_number_out_of_range, insert_clamp
from .mask_inputs import is_mask_input
from .precision_rules import Rule, is_fill, is_reduction, rule_of, tensors_of
from .remove_dead_code import remove_dead_code
from .remove_redundant_casts import remove_redundant_casts

aten = torch.ops.aten


def convert_precision(graph_module: GraphModule, dtype: torch.dtype) -> int:
    """Rewrite ``graph_module``, in place, to compute in ``dtype`` (torch.float16 or torch.bfloat16) where float32 is not needed.

    float64, complex, integer and boolean tensors are left alone, and so are tensors that are low already; casts and ``dtype=`` arguments
    of the model keep their meaning. Returns the number of operators that now compute in ``dtype``. Raises ValueError for another dtype.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"convert_precision: expected torch.float16 or torch.bfloat16, got {dtype}")
    conversion = _Conversion(graph_module, dtype)
    for node in list(graph_module.graph.nodes):
        conversion.visit(node)
    remove_redundant_casts(graph_module)
    remove_dead_code(graph_module)
    graph_module.recompile()
    return conversion.converted


class Lean(Enum):
    """Which precision a float32 value of the source graph draws its users to."""

    LOW = "low"
    NEITHER = "neither"
    WIDE = "wide"


class _Conversion:
    def __init__(self, graph_module: GraphModule, dtype: torch.dtype) -> None:
        self.graph_module = graph_module
        self.dtype = dtype
        self.converted = 0
        nodes = list(graph_module.graph.nodes)
        # Read before anything changes: what was float32 in the source graph, and the rule that follows from its dtypes.
        self.float32 = {n for n in nodes if any(v.dtype == torch.float32 for v in tensors_of(n.meta.get("val")))}
        self.rules = {n: rule_of(n) for n in nodes if n.op == "call_function"}
        # Parameters may be read before the first placeholder, and the output comes after the last.
        self.after_placeholders = next((n.next for n in reversed(nodes) if n.op == "placeholder"), nodes[0])
        self.leans: dict[Node, Lean] = {}
        self.is_low: set[Node] = set()
        self.is_large: set[Node] = set()
        """Values that may hold finite numbers beyond the range of ``dtype``: masks."""
        self.casts: dict[Node, Node] = {}
        """Node -> itself in the other precision."""

    def visit(self, node: Node) -> None:
        if node.op == "placeholder":
            self._visit_placeholder(node)
        elif node.op == "get_attr":
            self._visit_constant(node)
        elif node.op == "output":
            node.args = map_arg(node.args, self._wide)
        elif node.target is operator.getitem:
            self._visit_item(node)
        else:
            self._visit_call(node)

    def _visit_placeholder(self, node: Node) -> None:
        is_mask = node in self.float32 and is_mask_input(node, self.rules, self.float32)
        self.leans[node] = Lean.LOW if node in self.float32 and not is_mask and node.meta["val"].dim() > 1 else Lean.WIDE
        if is_mask:
            self.is_large.add(node)  # as far as we know

    def _visit_constant(self, node: Node) -> None:
        constant = constant_of(node)
        large = node in self.float32 and constant is not None and exceeds_range(constant, self.dtype)
        self.leans[node] = Lean.WIDE if large else Lean.NEITHER
        if large:
            self.is_large.add(node)

    def _visit_item(self, node: Node) -> None:
        """An item of several results is in the precision that its operator computed in."""
        source: Any = node.args[0]
        self.leans[node] = self.leans[source]
        if source in self.is_low and node in self.float32:
            self.is_low.add(node)
            node.meta["val"] = self._lowered(node.meta["val"])

    def _visit_call(self, node: Node) -> None:
        inputs = [n for n in node.all_input_nodes if n in self.float32]
        leans = {self.leans[n] for n in inputs}
        rule = self.rules[node]
        out_of_range = rule is Rule.FOLLOW and has_number_out_of_range(node, self.dtype)
        follows_low = rule is Rule.FOLLOW and not out_of_range and Lean.LOW in leans and Lean.WIDE not in leans
        if rule is Rule.LOW or follows_low:
            self._compute_kept(node, inputs) if is_kept_float32(node) else self._compute_low(node, inputs)
            return
        if any(n in self.is_low for n in inputs):
            node.args, node.kwargs = map_arg((node.args, node.kwargs), self._wide)
        if out_of_range or (rule is Rule.FOLLOW and any(n in self.is_large for n in inputs)):
            self.is_large.add(node)
        # Integers between a quantize and its dequantize lean as what was quantized, and so do the values that come back.
        self.leans[node] = self.leans[node.args[0]] if is_dequantize(node) else _lean_of_wide(node, leans, out_of_range)  # type: ignore[index]

    def _compute_low(self, node: Node, inputs: list[Node]) -> None:
        node.args, node.kwargs = map_arg((node.args, node.kwargs), lambda n: self._low(n) if n in inputs else n)
        self.leans[node] = Lean.LOW
        if inputs and node in self.float32:
            node.meta["val"] = self._lowered(node.meta["val"])
            self.is_low.add(node)
        self.converted += bool(inputs)

    def _compute_kept(self, node: Node, inputs: list[Node]) -> None:
        node.args, node.kwargs = map_arg((node.args, node.kwargs), self._wide)
        self.leans[node] = Lean.LOW
        if any(n in self.is_large for n in inputs):
            self.is_large.add(node)

    def _lowered(self, value: Any) -> Any:
        """What the call computes now: the same sizes and strides, so that symbols that the call itself made stay the same."""
        return tree_map(lambda v: v.to(self.dtype) if isinstance(v, torch.Tensor) and v.dtype == torch.float32 else v, value)

    def _low(self, node: Node) -> Node:
        """``node``, float32 in the source graph, in the low precision."""
        if node in self.is_low:
            return node
        if node not in self.casts:
            constant = constant_of(node)
            if constant is not None:
                low = clamp_tensor(constant, self.dtype)
                self.casts[node] = insert_constant(self.graph_module, f"{node.target}_low", low, before=node.next)
            else:
                place = self._place_after(node)
                source = insert_clamp(self.graph_module, node, self.dtype, before=place) if node in self.is_large else node
                self.casts[node] = self._cast(source, self.dtype, place, node)
        return self.casts[node]

    def _wide(self, node: Node) -> Node:
        """``node`` in float32, if it was that in the source graph; else as it is."""
        if node not in self.is_low:
            return node
        if node not in self.casts:
            self.casts[node] = self._cast(node, torch.float32, self._place_after(node), node)
        return self.casts[node]

    def _cast(self, node: Node, dtype: torch.dtype, before: Node, like: Node) -> Node:
        return insert_call(self.graph_module, aten._to_copy.default, (node,), {"dtype": dtype}, before=before, like=like)

    def _place_after(self, node: Node) -> Node:
        return self.after_placeholders if node.op == "placeholder" else node.next


def _lean_of_wide(node: Node, leans: set[Lean], out_of_range: bool) -> Lean:
    """Where the result of a call that computes in float32 leans."""
    if is_reduction(node) or out_of_range:
        return Lean.WIDE
    if Lean.LOW in leans:
        return Lean.LOW
    if not leans:
        return Lean.NEITHER if is_fill(node) else Lean.WIDE
    return Lean.WIDE if Lean.WIDE in leans else Lean.NEITHER
