"""Program: a captured model as one flat FX graph with known inputs, outputs and structures.

Invariants of ``graph_module``, which every lowering pass keeps:

* placeholders are the tensors the caller passes, flat, in the order of ``inputs``; nothing else is a placeholder;
* parameters, buffers and constants are ``get_attr`` nodes of tensors registered (as buffers) on the graph module;
* every call is ``call_function`` of an OpOverload, a higher-order operator or a Python operator on SymInts;
* the output node holds one flat tuple of nodes (tensors or SymInts), in the order of ``output_names``;
* every node that computes a tensor or SymInt has ``node.meta["val"]`` (a FakeTensor or SymInt); nodes from the user's code keep
  ``node.meta["stack_trace"]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule

from .engine.contents import EqualDims
from .engine.structure import Structure
from .inputs import Input


@dataclass
class Program:
    """A captured model. ``args_structure`` is the structure of ``(args, kwargs)``; its tensor leaves are ``inputs`` in order."""

    graph_module: GraphModule
    inputs: tuple[Input, ...]
    args_structure: Structure
    outputs_structure: Structure
    output_names: tuple[str, ...]
    example_inputs: tuple[torch.Tensor, ...]
    """Real tensors at the opt shapes, on the target device, as the caller would pass them."""
    equal_dims: EqualDims = ()
    """Dimensions that must be the same size in a call, as found by torch.export: groups of (input, dimension)."""
    notes: list[str] = field(default_factory=list)
    """What capture had to do that a user should know (for the report)."""
