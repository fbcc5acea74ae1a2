"""one_op: a node taken out into a graph of its own, to be tried out on a backend before it is given a whole segment."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node


def one_op_graph(node: Node) -> tuple[GraphModule, list[torch.Tensor]]:
    """The node alone: its constants as they are, its other tensors as inputs (zeros), its sizes as the numbers they had at capture.

    Outputs are those that are read. ``node`` and its graph are not changed.
    """
    owner = node.graph.owning_module
    root, graph = torch.nn.Module(), Graph()
    inputs: list[torch.Tensor] = []
    mapped: dict[Node, Any] = {}
    for source in node.all_input_nodes:
        value = source.meta.get("val")
        if source.op == "get_attr":
            continue
        if isinstance(value, torch.Tensor):
            inputs.append(torch.zeros([number(s) for s in value.shape], dtype=value.dtype, device=value.device))
            mapped[source] = graph.placeholder(f"input_{len(inputs)}")
            mapped[source].meta["val"] = inputs[-1]
        else:
            mapped[source] = number(value)
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            name = f"constant_{len(mapped)}"
            root.register_buffer(name, _attribute(owner, str(source.target)))
            mapped[source] = graph.get_attr(name)
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: mapped[n])
    call = graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    if isinstance(node.meta.get("val"), (tuple, list)):
        outputs = tuple(graph.call_function(operator.getitem, (call, index)) for index in _read_outputs(node) or [0])
    else:
        outputs = (call,)
    graph.output(outputs)
    return GraphModule(root, graph), inputs


def one_op_key(node: Node, *, with_shapes: bool) -> str:
    """What a verdict about the node depends on: the operator, its literal arguments, and its tensors' dtypes and ranks (or shapes)."""

    def describe(source: Node) -> str:
        value = source.meta.get("val")
        if isinstance(value, torch.Tensor):
            kind = "constant" if source.op == "get_attr" else "tensor"
            return f"<{kind} {value.dtype} {[number(s) for s in value.shape] if with_shapes else value.dim()}>"
        return f"<{number(value)}>"

    return f"{node.target}{torch.fx.map_arg((node.args, node.kwargs), describe)}{_read_outputs(node)}"


def number(value: Any) -> Any:
    """The number that a symbolic value had at capture; anything else as it is."""
    return value.node.hint if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) else value


def accepted_values(graph_module: GraphModule, inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]] | None:
    """Random inputs that PyTorch accepts for this graph, and what it makes of them; None when it accepts none.

    Integers are negative too where PyTorch takes them; operators that take indices take only small ones.
    """
    for low, high in ((-5, 6), (0, 2), (0, 1)):
        generator = torch.Generator().manual_seed(0)
        values = [_draw(value, low, high, generator) for value in inputs]
        try:
            with torch.no_grad():
                return values, graph_module(*values)
        except (RuntimeError, IndexError):
            continue
    return None


def difference(expected: tuple[torch.Tensor, ...], got: list[torch.Tensor]) -> str:
    """'' when both are the same values of the same kinds (boolean, integer, floating), else what differs."""
    for reference, result in zip(expected, got, strict=True):
        if _kind(result.dtype) != _kind(reference.dtype):
            return f"gives {result.dtype} where PyTorch gives {reference.dtype}"
        if result.shape != reference.shape:
            return f"gives the shape {tuple(result.shape)} where PyTorch gives {tuple(reference.shape)}"
        if not torch.allclose(result.double(), reference.double(), rtol=1e-3, atol=1e-4, equal_nan=True):
            return "computes other numbers than PyTorch"
    return ""


def _read_outputs(node: Node) -> list[int]:
    return sorted({user.args[1] for user in node.users if user.target is operator.getitem})  # type: ignore[misc]


def _kind(dtype: torch.dtype) -> str:
    return "boolean" if dtype is torch.bool else "floating" if dtype.is_floating_point else "integer"


def _draw(like: torch.Tensor, low: int, high: int, generator: torch.Generator) -> torch.Tensor:
    if like.dtype.is_floating_point:
        return torch.randn(like.shape, generator=generator).to(like.dtype)
    if like.dtype is torch.bool:
        return torch.randint(0, 2, like.shape, generator=generator).bool()
    return torch.randint(max(low, 0) if like.dtype is torch.uint8 else low, high, like.shape, generator=generator).to(like.dtype)


def _attribute(owner: Any, path: str) -> torch.Tensor:
    for name in path.split("."):
        owner = getattr(owner, name)
    return owner
