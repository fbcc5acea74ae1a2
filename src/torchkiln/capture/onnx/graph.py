"""graph: an ONNX graph as a list of nodes, its constants apart from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from onnx import GraphProto, NodeProto, TensorProto

from ...errors import ModelSourceError
from .data_types import read_attribute, read_tensor, torch_dtype
from .node import Node
from .numbers import Numbers, numbers_of
from .table import OPERATORS, REFUSALS


@dataclass
class GraphInput:
    """``sizes``: a number, or the name ("" without one) of a dimension that varies."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | str, ...]


@dataclass
class Graph:
    """``constants``: initializers and Constant nodes, by name. ``inputs`` are those without a value in the file.

    The module takes the constants over: ``numbers`` are those known while tracing, ``paths`` those that are its parameters and buffers.
    """

    nodes: list[Node]
    inputs: list[GraphInput]
    outputs: list[str]
    constants: dict[str, torch.Tensor]
    numbers: dict[str, Numbers] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)


def read_graph(proto: GraphProto, opsets: dict[str, int], folder: Path, where: str) -> Graph:
    """Raises ModelSourceError: operators without a function here (all of them are named), damaged data, a graph that is not in order."""
    _check_operators(proto, opsets, where)
    graph = _read(proto, opsets, folder, where)
    _check_order(graph, {}.keys(), where)
    return graph


def _read(proto: GraphProto, opsets: dict[str, int], folder: Path, where: str) -> Graph:
    constants = {tensor.name: read_tensor(tensor, folder, where) for tensor in proto.initializer}
    four_bits = {tensor.name for tensor in proto.initializer if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)}
    nodes = []
    for node in proto.node:
        read = _read_node(node, opsets, folder, where)
        if read.op_type == "QuantizeLinear" and (
            set(read.inputs) & four_bits or read.attributes.get("output_dtype") in (TensorProto.INT4, TensorProto.UINT4)
        ):
            raise ModelSourceError(f"{where}: {read}: PyTorch cannot quantize to 4 bits: quantize activations to 8 bits")
        value = read.attributes.get("value") if read.op_type == "Constant" else None
        if isinstance(value, torch.Tensor):
            constants[read.outputs[0]] = value
        else:
            # Its values must be numbers while a graph is traced, where reading a tensor's data would be an operator.
            read.attributes.update(
                {name: _as_numbers(tensor, where, read) for name, tensor in read.attributes.items() if isinstance(tensor, torch.Tensor)}
            )
            nodes.append(read)
    inputs = [_read_input(value, where) for value in proto.input if value.name not in constants]
    return Graph(nodes, inputs, [value.name for value in proto.output], constants)


def _as_numbers(tensor: torch.Tensor, where: str, node: Node) -> Numbers:
    numbers = numbers_of(tensor)
    if numbers is None:
        raise ModelSourceError(f"{where}: {node}: expected an attribute of a few numbers, got {tensor.dtype} of shape {list(tensor.shape)}")
    return numbers


def _read_node(proto: NodeProto, opsets: dict[str, int], folder: Path, where: str) -> Node:
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    attributes = {a.name: read_attribute(a, folder, f"{where}: node {proto.name or proto.op_type}") for a in proto.attribute}
    graphs = {name: _read(value, opsets, folder, where) for name, value in attributes.items() if isinstance(value, GraphProto)}
    attributes = {name: value for name, value in attributes.items() if name not in graphs}
    return Node(proto.op_type, domain, opsets.get(domain, 1), proto.name, tuple(proto.input), tuple(proto.output), attributes, graphs)


def _read_input(value: object, where: str) -> GraphInput:
    name, kind = value.name, value.type  # type: ignore[attr-defined]
    if not kind.HasField("tensor_type"):
        raise ModelSourceError(f"{where}: input {name!r} is no tensor but a {kind.WhichOneof('value')}: only tensors can be passed to an engine")
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        raise ModelSourceError(f"{where}: input {name!r} has no shape, not even a number of dimensions: export the model again with one")
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param for dim in tensor.shape.dim)
    return GraphInput(name, torch_dtype(tensor.elem_type, f"{where}: input {name!r}"), sizes)


def _all_nodes(proto: GraphProto) -> Iterator[NodeProto]:
    for node in proto.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


def _check_operators(proto: GraphProto, opsets: dict[str, int], where: str) -> None:
    missing: dict[tuple[str, str], list[str]] = {}
    for node in _all_nodes(proto):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if node.op_type not in OPERATORS.get(domain, {}):
            missing.setdefault((domain, node.op_type), []).append(node.name or (node.output[0] if node.output else "?"))
    if not missing:
        return
    lines = []
    for (domain, op_type), nodes in sorted(missing.items()):
        reason = REFUSALS.get(op_type) if domain == "" else None
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        label = f"{domain}.{op_type}" if domain else op_type
        lines.append(f"  {label} (opset {opsets.get(domain, 1)}): node {nodes[0]}{more}" + (f": {reason}" if reason else ""))
    raise ModelSourceError(
        f"{where}: operators that cannot be run in PyTorch here:\n"
        + "\n".join(lines)
        + "\nWhere you have the PyTorch model, give that as MODEL instead."
    )


def _check_order(graph: Graph, outer: object, where: str) -> None:
    known = {"", *graph.constants, *(i.name for i in graph.inputs), *outer}  # type: ignore[misc]
    for node in graph.nodes:
        absent = [name for name in node.inputs if name not in known]
        if absent:
            raise ModelSourceError(f"{where}: damaged: {node} reads {absent[0]!r}, which nothing before it makes")
        for inner in node.graphs.values():
            _check_order(inner, known, where)
        known.update(node.outputs)
    absent = [name for name in graph.outputs if name not in known]
    if absent:
        raise ModelSourceError(f"{where}: damaged: nothing makes the output {absent[0]!r}")
