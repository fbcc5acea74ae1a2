"""unlift: an ExportedProgram's graph as a GraphModule that holds its own tensors (the invariants of program.py)."""

from __future__ import annotations

import re

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind, TensorArgument
from torch.fx import Graph, GraphModule, Node

from ..errors import StatefulModel, UserError

_MUTATIONS = {
    kind: what
    for name, what in (("BUFFER_MUTATION", "buffer"), ("PARAMETER_MUTATION", "parameter"), ("USER_INPUT_MUTATION", "input"))
    if (kind := getattr(OutputKind, name, None)) is not None
}


def unlift(program: ExportedProgram) -> GraphModule:
    """The graph of ``program`` with parameters, buffers and constants as ``get_attr`` of tensors registered on the module.

    Placeholders are the user's tensors, in order (inputs that were specialised to a constant are dropped); the output is one
    flat tuple of the user's tensor and SymInt outputs, in order (constant outputs are dropped: the output structure has them).
    A tensor that several parameters share is registered once. ``node.meta`` is kept. ``program`` is not changed; its tensors
    are shared, not copied.

    Raises UserError, naming it, when the model changes a buffer, a parameter or an input in ``forward``, or takes an input
    that is no tensor and not constant.
    """
    _refuse_mutation(program)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    root = _with_submodules(program.graph_module)
    graph = Graph()
    new: dict[Node, Node] = {}
    names: dict[int, str] = {}

    for node in program.graph.nodes:
        if node.op == "placeholder":
            copied = _copy_input(node, specs[node.name], graph, root, program, names)
            if copied is not None:
                new[node] = copied
        elif node.op == "output":
            graph.output(tuple(new[value] for value in node.args[0] if isinstance(value, Node)))
        else:
            new[node] = graph.node_copy(node, lambda n: new[n])
    graph_module = GraphModule(root, graph, class_name="Captured")
    graph_module.graph.lint()
    return graph_module


def _copy_input(node: Node, spec: InputSpec, graph: Graph, root: torch.nn.Module, program: ExportedProgram, names: dict[int, str]) -> Node | None:
    """The placeholder or get_attr that stands for ``node``; None for an input that is a constant."""
    if spec.kind is InputKind.USER_INPUT:
        if isinstance(spec.arg, ConstantArgument):
            return None
        if not isinstance(spec.arg, TensorArgument):
            raise UserError(f"input {node.name!r}: expected a tensor or a constant, got {type(spec.arg).__name__}; pass the number as a 0-d tensor")
        return graph.node_copy(node)
    if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        raise UserError(f"input {node.name!r} is a {spec.kind.name.lower().replace('_', ' ')}: an engine can hold only tensors")
    tensor = _tensor_of(spec, program)
    if id(tensor) not in names:
        names[id(tensor)] = _register(root, spec.target or node.name, tensor)
    attribute = graph.create_node("get_attr", names[id(tensor)])
    attribute.meta = dict(node.meta)
    return attribute


def _tensor_of(spec: InputSpec, program: ExportedProgram) -> torch.Tensor:
    """The parameter, buffer or constant itself; buffers that are not persistent live among the constants."""
    assert spec.target is not None
    held = program.state_dict if spec.target in program.state_dict else program.constants
    tensor = held[spec.target]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _register(root: torch.nn.Module, name: str, tensor: torch.Tensor) -> str:
    base = re.sub(r"\W", "_", name)
    if base[:1].isdigit():  # "0.weight" of an nn.Sequential: no identifier, and the graph is printed as Python
        base = f"t_{base}"
    unique, number = base, 0
    while hasattr(root, unique):
        number += 1
        unique = f"{base}_{number}"
    root.register_buffer(unique, tensor.detach())
    return unique


def _with_submodules(source: GraphModule) -> torch.nn.Module:
    """A module with the submodules of ``source`` (the branches of higher-order operators) and nothing else."""
    root = torch.nn.Module()
    for name, child in source.named_children():
        root.add_module(name, child)
    return root


def _refuse_mutation(program: ExportedProgram) -> None:
    for spec in program.graph_signature.output_specs:
        if spec.kind in _MUTATIONS:
            what = _MUTATIONS[spec.kind]
            raise StatefulModel(
                f"the model changes {what} {spec.target!r} in forward: an engine's outputs must depend on its inputs alone. "
                "Call model.eval() if batch norm does it; else compute a new tensor instead of changing this one."
            )
