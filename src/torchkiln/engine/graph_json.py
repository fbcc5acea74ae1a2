"""An FX graph as JSON values and a dict of tensors, and back.

The graph keeps the invariants of program.py. Each node is one object, in running order::

    {"op": "input",  "name": "x"}
    {"op": "tensor", "name": "weight", "tensor": "weight"}
    {"op": "graph",  "name": "true_graph_0", "graph": {"nodes": [...]}}
    {"op": "call",   "name": "add", "target": "aten.add.Tensor", "args": [...], "kwargs": {...}}
    {"op": "output", "args": [...]}

An argument is a JSON number, boolean, string, null or array as it is; anything else is an object with one member that names its
kind: ``{"node": "x"}``, ``{"tuple": [...]}``, ``{"dtype": "float32"}``, ``{"device": null}`` (the engine's own device), ...
"""

from __future__ import annotations

import keyword
import re
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import CorruptEngineFile, UserError
from .call_schema import check_call
from .graph_arguments import decode_argument, encode_argument
from .op_table import find_target, target_name
from .tensor_layout import restore_tensor, stored_tensor

MAX_GRAPH_DEPTH = 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


def encode_graph(graph_module: GraphModule, device: torch.device) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The graph as JSON values and its tensors by name (contiguous, sharing memory with the module's where they are contiguous already).

    ``device`` is the engine's: arguments and tensors on it are written as being on "the engine's device". Raises UserError naming the
    node for what a file cannot hold (a refused operator, a tensor subclass, an argument that is not data).
    """
    return _Encoder(device).encode(graph_module)


def decode_graph(data: Any, tensors: dict[str, torch.Tensor], device: torch.device) -> GraphModule:
    """The GraphModule of ``encode_graph``'s result, with its tensors as buffers on ``device``.

    Nothing in ``data`` is evaluated or imported: names are checked, operators looked up (op_table.py). Raises CorruptEngineFile, and
    TargetMismatch for an operator that is not registered.
    """
    return _Decoder(tensors, device).decode(data, 0)


class _Encoder:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: dict[str, torch.Tensor] = {}
        self._layouts: dict[str, Any] = {}
        self._keys: dict[int, str] = {}

    def encode(self, graph_module: GraphModule) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return {**self._encode_graph(graph_module), "tensors": self._layouts}, self._tensors

    def _encode_graph(self, graph_module: GraphModule) -> dict[str, Any]:
        names: dict[Node, str] = {}
        nodes = []
        for node in graph_module.graph.nodes:
            names[node] = node.name if _NAME.fullmatch(node.name) else f"node_{len(names)}"
            try:
                nodes.append(self._encode_node(node, names, graph_module))
            except UserError as error:
                raise UserError(f"node {node.name}: {error}") from None
        return {"nodes": nodes}

    def _encode_node(self, node: Node, names: dict[Node, str], graph_module: GraphModule) -> dict[str, Any]:
        name = names[node]
        if node.op == "placeholder":
            return {"op": "input", "name": name}
        if node.op == "output":
            return {"op": "output", "args": [encode_argument(node.args[0], names, self._device)]}
        if node.op == "get_attr":
            value = _attribute(graph_module, str(node.target))
            if isinstance(value, GraphModule):
                return {"op": "graph", "name": name, "graph": self._encode_graph(value)}
            return {"op": "tensor", "name": name, "tensor": self._key(str(node.target), value)}
        if node.op != "call_function":
            raise UserError(f"expected a placeholder, get_attr, call_function or output, got {node.op}")
        encoded: dict[str, Any] = {"op": "call", "name": name, "target": target_name(node.target)}
        encoded["args"] = [encode_argument(argument, names, self._device) for argument in node.args]
        if node.kwargs:
            encoded["kwargs"] = {key: encode_argument(argument, names, self._device) for key, argument in node.kwargs.items()}
        return encoded

    def _key(self, target: str, value: Any) -> str:
        """The name ``value`` is stored under; a tensor that several nodes read is stored once."""
        if id(value) not in self._keys:
            if not isinstance(value, torch.Tensor):
                raise UserError(f"{target}: expected a tensor, got {type(value).__module__}.{type(value).__qualname__}")
            stem = re.sub(r"\W", "_", target, flags=re.ASCII)[:150] or "tensor"
            key, count = stem, 0
            while key in self._tensors:
                count += 1
                key = f"{stem}_{count}"
            self._tensors[key], self._layouts[key] = stored_tensor(value, self._device)
            self._keys[id(value)] = key
        return self._keys[id(value)]


class _Decoder:
    def __init__(self, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        self._stored = tensors
        self._device = device
        self._tensors: dict[str, torch.Tensor] = {}

    def decode(self, data: Any, depth: int) -> GraphModule:
        if depth == 0:
            self._restore_tensors(data)
        if depth > MAX_GRAPH_DEPTH:
            raise CorruptEngineFile(f"graph: nested deeper than {MAX_GRAPH_DEPTH} graphs")
        root = torch.nn.Module()
        graph = Graph()
        values: dict[str, Node] = {}
        nodes = _member(data, "nodes", list, "graph")
        for index, encoded in enumerate(nodes):
            where = f"graph node {index}"
            operation = _member(encoded, "op", str, where)
            if (operation == "output") != (index == len(nodes) - 1):
                raise CorruptEngineFile(f"{where}: expected one output, as the last node")
            if operation == "output":
                arguments = _member(encoded, "args", list, where)
                if len(arguments) != 1:
                    raise CorruptEngineFile(f"{where}: expected one argument, got {len(arguments)}")
                graph.output(decode_argument(arguments[0], values, self._device, where))
                continue
            name = _member(encoded, "name", str, where)
            if not _NAME.fullmatch(name) or name in values:
                raise CorruptEngineFile(f"{where}: expected a new name of letters, digits and underscores, got {name[:200]!r}")
            values[name] = self._decode_node(operation, name, encoded, graph, root, values, f"{where} ({name})", depth)
        if not nodes:
            raise CorruptEngineFile("graph: no nodes")
        return GraphModule(root, graph)

    def _decode_node(
        self, operation: str, name: str, encoded: dict[str, Any], graph: Graph, root: torch.nn.Module, values: dict[str, Node], where: str, depth: int
    ) -> Node:
        if operation == "input":
            # A placeholder's target becomes a parameter name in the code that FX generates.
            return graph.placeholder(f"input_{name}")
        if operation == "tensor":
            key = _member(encoded, "tensor", str, where)
            if key not in self._tensors:
                raise CorruptEngineFile(f"{where}: tensor {key[:200]!r} is not in the file")
            attribute = f"tensor_{key}"
            if not hasattr(root, attribute):
                root.register_buffer(attribute, self._tensors[key])
            return graph.create_node("get_attr", attribute, name=name)
        if operation == "graph":
            attribute = f"graph_{name}"
            root.add_module(attribute, self.decode(_member(encoded, "graph", dict, where), depth + 1))
            return graph.create_node("get_attr", attribute, name=name)
        if operation != "call":
            raise CorruptEngineFile(f"{where}: expected op input, tensor, graph, call or output, got {operation[:50]!r}")
        target = find_target(_member(encoded, "target", str, where))
        args = tuple(decode_argument(argument, values, self._device, where) for argument in _member(encoded, "args", list, where))
        kwargs = {
            key: decode_argument(argument, values, self._device, where)
            for key, argument in (_member(encoded, "kwargs", dict, where) if "kwargs" in encoded else {}).items()
        }
        if any(not _NAME.fullmatch(key) or keyword.iskeyword(key) for key in kwargs):
            # Keywords become part of the code that FX generates.
            raise CorruptEngineFile(f"{where}: expected keywords of letters, digits and underscores, got {sorted(kwargs)!r:.200}")
        check_call(target, args, kwargs, where)
        return graph.create_node("call_function", target, args, kwargs, name=name)

    def _restore_tensors(self, data: Any) -> None:
        layouts = _member(data, "tensors", dict, "graph")
        if layouts.keys() != self._stored.keys():
            odd = sorted(layouts.keys() ^ self._stored.keys())
            raise CorruptEngineFile(f"graph: the tensors it names and the tensors stored with it differ: {odd[:5]}")
        for key, layout in layouts.items():
            if not _NAME.fullmatch(f"tensor_{key}"):
                raise CorruptEngineFile(f"graph: tensor {key[:200]!r}: expected a name of letters, digits and underscores")
            self._tensors[key] = restore_tensor(self._stored[key], layout, self._device, f"graph: tensor {key!r}")


def _attribute(module: torch.nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        if not hasattr(value, part):
            raise UserError(f"the module has no attribute {target!r}")
        value = getattr(value, part)
    return value


def _member(data: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(data, dict) or not isinstance(data.get(key), kind):
        raise CorruptEngineFile(f"{where}: expected an object with {key!r} of type {kind.__name__}")
    return data[key]
