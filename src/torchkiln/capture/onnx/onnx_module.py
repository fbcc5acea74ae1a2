"""onnx_module: a module that runs an ONNX graph in PyTorch."""

from __future__ import annotations

import inspect
import keyword
import re
from typing import Any

import torch
from torch import nn

from ...errors import ModelSourceError, TorchkilnError
from .graph import Graph, GraphInput
from .node import Call, Node, Setting, Value
from .numbers import Numbers, numbers_of, to_tensor
from .table import OPERATORS

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class OnnxModule(nn.Module):
    """``forward`` takes the graph's inputs by position or by name. One output is returned as it is, several as a dict by their names.

    Floating constants are parameters and large integer ones buffers, under their ONNX names: ``layer1.0.conv1.weight`` is that attribute of a
    submodule ``layer1`` and so on. Made by ``make_onnx_module``.
    """

    input_names: tuple[str, ...]

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self._declared: dict[str, torch.dtype] = {}
        self._last_use = _last_use(graph)
        self._adopt(graph)

    def _adopt(self, graph: Graph) -> None:
        """Take the constants of the graph and of those within it."""
        for name, tensor in graph.constants.items():
            numbers = numbers_of(tensor)
            if numbers is not None:
                graph.numbers[name] = numbers
            if numbers is None or tensor.is_floating_point():
                path = graph.paths[name] = _register(self, name, tensor)
                self._declared[path] = tensor.dtype
        graph.constants = {}
        for node in graph.nodes:
            for inner in node.graphs.values():
                self._adopt(inner)

    def _constants(self, graph: Graph) -> dict[str, Value]:
        values: dict[str, Value] = dict(graph.numbers)
        for name, path in graph.paths.items():
            tensor = _attribute(self, path)
            numbers = values.get(name)
            values[name] = tensor if numbers is None else Numbers(numbers.values, tensor.dtype, tensor)
        return values

    def _converted(self) -> dict[torch.dtype, torch.dtype]:
        """What ``module.to(dtype)`` has made of the file's floating types: casts within the graph, which name them, follow."""
        for path, declared in self._declared.items():
            now = _attribute(self, path).dtype
            if now is not declared:
                types = {d for d in self._declared.values() if d.is_floating_point} | {d for d in _FLOATS if d.itemsize < now.itemsize}
                return dict.fromkeys(types, now)
        return {}

    def _call(self, tensors: list[torch.Tensor]) -> Any:
        converted = self._converted()
        for spec, name, tensor in zip(self._graph.inputs, self.input_names, tensors, strict=True):
            _check_input(spec, converted.get(spec.dtype, spec.dtype), name, tensor)
        values = self._constants(self._graph)
        values.update({spec.name: tensor for spec, tensor in zip(self._graph.inputs, tensors, strict=True)})
        device = tensors[0].device
        self._run(self._graph, values, Setting(device, converted), self._last_use)
        results = [_result(name, values[name], device) for name in self._graph.outputs]
        return results[0] if len(results) == 1 else dict(zip(self._graph.outputs, results, strict=True))

    def _run(self, graph: Graph, values: dict[str, Value], setting: Setting, last_use: dict[str, int]) -> None:
        for index, node in enumerate(graph.nodes):
            _store(node, self._run_node(node, values, setting), values)
            for name in node.inputs:
                if last_use.get(name) == index:
                    values.pop(name, None)  # free it: nothing later reads it

    def _run_node(self, node: Node, values: dict[str, Value], setting: Setting) -> Any:
        def run(name: str) -> list[Value]:
            inner = node.graphs[name]
            scope = {**values, **self._constants(inner)}
            self._run(inner, scope, setting, {})
            return [scope[output] for output in inner.outputs]

        call = Call(node, [values[name] if name else None for name in node.inputs], setting, run)
        try:
            return OPERATORS[node.domain][node.op_type](call)
        except TorchkilnError:
            raise
        except (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, NotImplementedError) as error:  # what torch raises
            shapes = ", ".join(_describe(value) for value in call.inputs)
            raise ModelSourceError(f"{node}: PyTorch cannot run it on {shapes or 'no inputs'}: {error}") from error


def make_onnx_module(graph: Graph) -> OnnxModule:
    """A module in eval mode whose ``forward`` has the graph's inputs as its parameters."""
    names = _identifiers([spec.name for spec in graph.inputs])
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind), *(inspect.Parameter(name, kind) for name in names)]
    signature = inspect.Signature(parameters)

    def forward(self: OnnxModule, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        return self._call([bound.arguments[name] for name in names])

    forward.__signature__ = signature  # type: ignore[attr-defined]
    made = type("OnnxModel", (OnnxModule,), {"forward": forward, "input_names": tuple(names), "__module__": __name__})
    module: OnnxModule = made(graph)
    return module.eval()


def _last_use(graph: Graph) -> dict[str, int]:
    """The position of the last node that reads a value; values that are outputs or read inside a subgraph are never freed."""
    last: dict[str, int] = {}
    kept = set(graph.outputs)
    for index, node in enumerate(graph.nodes):
        last.update(dict.fromkeys(node.inputs, index))
        for inner in node.graphs.values():
            kept |= _names_read(inner)
    return {name: index for name, index in last.items() if name not in kept}


def _names_read(graph: Graph) -> set[str]:
    names = set(graph.outputs)
    for node in graph.nodes:
        names |= set(node.inputs)
        for inner in node.graphs.values():
            names |= _names_read(inner)
    return names


def _store(node: Node, result: Any, values: dict[str, Value]) -> None:
    results = result if isinstance(result, tuple) else (result[0] if isinstance(result, list) else result,)
    for position, name in enumerate(node.outputs):
        if not name:
            continue
        if position >= len(results) or results[position] is None:
            raise ModelSourceError(f"{node}: its output {position} ({name}) cannot be computed here")
        values[name] = results[position]


def _result(name: str, value: Value, device: torch.device) -> torch.Tensor:
    if isinstance(value, Numbers):
        return to_tensor(value, device)
    if not isinstance(value, torch.Tensor):
        raise ModelSourceError(f"ONNX output {name!r} is a sequence: only tensors can be given by an engine")
    return value


def _check_input(spec: GraphInput, dtype: torch.dtype, name: str, tensor: torch.Tensor) -> None:
    fits = len(spec.sizes) == tensor.dim() and all(
        not isinstance(want, int) or not isinstance(got, int) or want == got for want, got in zip(spec.sizes, tensor.shape, strict=True)
    )
    if tensor.dtype is not dtype or not fits:
        wanted = f"{dtype} of shape {list(spec.sizes)}"
        raise ModelSourceError(f"ONNX input {name!r}: expected {wanted}, got {tensor.dtype} of shape {list(tensor.shape)}")


def _describe(value: Value) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return str(value.flat()[:8]) if isinstance(value, Numbers) else "nothing" if value is None else type(value).__name__


def _identifiers(names: list[str]) -> list[str]:
    """ONNX's names as names of Python parameters: ``input.1`` -> ``input_1``."""
    made: list[str] = []
    for name in names:
        text = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "input"
        text = f"input_{text}" if text[0].isdigit() else f"{text}_" if keyword.iskeyword(text) or text == "self" else text
        unique, count = text, 1
        while unique in made:
            count += 1
            unique = f"{text}_{count}"
        made.append(unique)
    return made


def _register(root: nn.Module, name: str, tensor: torch.Tensor) -> str:
    """Put a tensor where its dotted name says; where that place is taken, beside it. Returns its path."""
    *folders, leaf = [part or "_" for part in name.split(".")]
    module, path = root, []
    for folder in folders:
        while hasattr(module, folder) and type(getattr(module, folder)) is not nn.Module:
            folder += "_"
        if not hasattr(module, folder):
            module.add_module(folder, nn.Module())
        module = getattr(module, folder)
        path.append(folder)
    while hasattr(module, leaf):
        leaf += "_"
    if tensor.is_floating_point():
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        module.register_buffer(leaf, tensor)
    return ".".join([*path, leaf])


def _attribute(root: nn.Module, path: str) -> torch.Tensor:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value
