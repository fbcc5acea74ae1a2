"""Runtime of the fallback: a GraphModule made from the artifact's JSON, run without autograd."""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ...engine.artifact import Artifact
from ...engine.graph_json import decode_graph
from ...engine.strict_json import load_json
from ...errors import CorruptEngineFile
from ...log import SUMMARY, log
from ..contract import Runner


def load(artifact: Artifact, device: torch.device, num_threads: int | None) -> Runner:
    """A Runner of the artifact's graph; on CUDA it runs on the current stream.

    PyTorch has one thread count for the whole process, so ``num_threads`` is not applied here (the log says so when it differs). Raises
    CorruptEngineFile, and TargetMismatch for an operator whose library is not imported.
    """
    graph_module = decode_graph(load_json(artifact.payload, "torch segment: graph"), artifact.tensors, device)
    if device.type == "cpu" and num_threads not in (None, torch.get_num_threads()):
        log(SUMMARY, "torch segments use the process's %d threads, not %d: call torch.set_num_threads", torch.get_num_threads(), num_threads)
    runner = TorchRunner(graph_module)
    for key, count in (("input_count", runner.input_count), ("output_count", runner.output_count)):
        if artifact.metadata.get(key) != count:
            raise CorruptEngineFile(f"torch segment: {key}: expected {count}, as in its graph, got {artifact.metadata.get(key)!r:.50}")
    return runner


class TorchRunner:
    """Calls the graph's generated code, which holds values in local variables (so threads share nothing) and drops each after its last use."""

    def __init__(self, graph_module: GraphModule) -> None:
        for name in list(graph_module._buffers):
            # Plain attributes: nn.Module looks a buffer up in Python, 0.4 us each, and a model has hundreds.
            graph_module.__dict__[name] = graph_module._buffers.pop(name)
        self._graph_module = graph_module
        sources = [module.forward.__code__.co_filename for module in graph_module.modules() if isinstance(module, GraphModule)]
        weakref.finalize(self, _forget_sources, sources)
        self._forward = graph_module.forward
        graph = graph_module.graph
        self.input_count = len(graph.find_nodes(op="placeholder"))
        outputs = graph.output_node().args[0]
        if not isinstance(outputs, (tuple, list)) or not all(isinstance(output, Node) for output in outputs):
            raise CorruptEngineFile("torch segment: expected an output that is a tuple of values")
        self.output_count = len(outputs)
        aliases = _constant_aliases(graph)
        self._constant_outputs = [index for index, output in enumerate(outputs) if output in aliases]
        self.capture_blocker = _capture_blocker(graph_module)

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        if len(inputs) != self.input_count:
            raise CorruptEngineFile(f"torch segment: its graph takes {self.input_count} inputs, the engine passes {len(inputs)}")
        # Not inference_mode: the caller could not write to the tensors it gets (0.06 us an operator is the price, on one CPU).
        with torch.no_grad():
            outputs = self._forward(*inputs)
            if self._constant_outputs:
                outputs = list(outputs)
                for index in self._constant_outputs:
                    # The caller owns what it gets: it may write to it, and must not write to the engine's constants.
                    if isinstance(outputs[index], torch.Tensor):
                        outputs[index] = outputs[index].clone()
            return outputs


def _forget_sources(names: list[str]) -> None:
    """FX keeps the source of every graph it has compiled, for tracebacks, for ever: a service that loads engines again and again would grow."""
    for name in names:
        torch.fx.graph_module._loader.eval_cache.pop(name, None)
        linecache.cache.pop(name, None)


def _constant_aliases(graph: Graph) -> set[Node]:
    """The values that may share memory with one of the graph's tensors: it is one, or a view of one."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (_may_return_alias(node.target) and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def _may_return_alias(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", "") == "getitem"
    # reshape, contiguous and to are composites that return a view or their input only sometimes, which their schemas do not say.
    return any(value.alias_info is not None for value in target._schema.returns) or torch._C._dispatch_has_kernel_for_dispatch_key(
        target.name(), "CompositeImplicitAutograd"
    )


#: Operators whose result's size or value the host must wait for, which a CUDA graph cannot do.
_HOST_READS = frozenset(
    {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::_assert_scalar", "aten::is_nonzero"}
)


def _capture_blocker(graph_module: GraphModule) -> str:
    """Why this graph cannot be captured in a CUDA graph: '' when it can."""
    for node in graph_module.graph.nodes:
        target = node.target
        if isinstance(target, torch._ops.HigherOrderOperator):
            return f"{target.name()} decides on the host"
        if isinstance(target, torch._ops.OpOverload):
            name = target._schema.name
            if name in _HOST_READS or torch.Tag.dynamic_output_shape in target.tags or torch.Tag.data_dependent_output in target.tags:
                return f"{target} reads a device value on the host"
            if name.split("::")[0] not in ("aten", "prims"):
                return f"{target} is a custom operator, which may wait for the device"
    return ""
