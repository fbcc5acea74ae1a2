"""specialize: a copy of a graph for one set of input shapes: every size a number, every ``meta["val"]`` of fixed shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ...errors import BuildFailed


def specialize(graph_module: GraphModule, shapes: Sequence[Sequence[int]]) -> GraphModule:
    """A new module over the same tensors, for inputs of ``shapes``. Raises BuildFailed when the graph cannot run at them."""
    mode = FakeTensorMode()
    source = graph_module.graph
    target = Graph()
    known: dict[Node, Any] = {}
    made: dict[Node, Any] = {}
    result = GraphModule({}, target)
    placeholders = iter(shapes)
    for node in source.nodes:
        if node.op == "output":
            target.output(map_arg(node.args[0], lambda n: made[n]))
            continue
        if node.op == "placeholder":
            value = node.meta["val"]
            with mode:
                known[node] = torch.empty(tuple(next(placeholders)), dtype=value.dtype, device=value.device)
        elif node.op == "get_attr":
            tensor = _attribute(graph_module, str(node.target))
            setattr(result, str(node.target), tensor) if not isinstance(tensor, torch.Tensor) else result.register_buffer(str(node.target), tensor)
            known[node] = mode.from_tensor(tensor, static_shapes=True) if isinstance(tensor, torch.Tensor) else tensor
        else:
            args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda n: known[n])
            try:
                with mode, torch.no_grad():
                    known[node] = node.target(*args, **kwargs)
            except RuntimeError as error:
                raise BuildFailed(f"{node.name}: {node.target} does not run at input shapes {[tuple(s) for s in shapes]}: {error}") from error
        if isinstance(known[node], (bool, int, float)):
            made[node] = known[node]  # a size: the number itself takes its place
            continue
        copy = target.node_copy(node, lambda n: made[n])
        copy.meta = {**node.meta, "val": known[node]}
        made[node] = copy
    target.eliminate_dead_code()
    result.recompile()
    return result


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
