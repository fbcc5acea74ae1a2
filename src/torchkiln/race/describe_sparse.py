"""describe_sparse: sparse_weights=True in the report: for each layer whether 2:4 is used, what it takes beside the dense kernel, or why not."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.fx import Node

from ..engine.report import SparseLayerReport
from ..lower.graph_edit import constant_of
from ..quantize.layers import Names
from ..quantized_ops import is_dequantize
from ..sparsity.pattern import is_two_of_four
from .attempt import Attempt

aten = torch.ops.aten

#: Operator -> (position of the weight, whether it is [in, out]).
_WEIGHTED = {
    aten.convolution.default: (1, False),
    aten.linear.default: (1, False),
    aten.mm.default: (1, True),
    aten.matmul.default: (1, True),
    aten.addmm.default: (2, True),
}
_TRANSPOSED = 6
#: Why a 2:4 weight is multiplied as a dense one, by backend.
_DENSE = {
    "openvino": "OpenVINO multiplies it dense: CPUs have no 2:4 instructions",
    "onnxruntime": "ONNX Runtime multiplies it dense",
    "inductor": "Inductor multiplies it dense",
    "torch": "PyTorch multiplies it dense",
}
_SUFFIX = re.compile(r"(_low|_transposed)(_\d+)?$")


def describe_sparse(attempt: Attempt) -> list[SparseLayerReport]:
    """A line for each linear layer and convolution with a constant weight, in the order of the lowered graph, segment by segment."""
    names = Names()
    found: list[SparseLayerReport] = []
    for step, segment in zip(attempt.steps, attempt.contents.segments, strict=True):
        layers = [(node, names.of(node)) for node in step.nodes if _weight(node) is not None]
        rows = segment.artifact.metadata.get("sparse_layers")
        if rows is None:
            found += [_from_graph(node, name, segment.backend) for node, name in layers]
        else:
            by_weight: dict[str, list[str]] = {}
            for node, name in layers:
                by_weight.setdefault(str(_source(node).target), []).append(name)
            found += [_from_backend(row, by_weight, segment.backend) for row in rows]
    return found


def _weight(node: Node) -> torch.Tensor | None:
    """The constant weight of a layer as [out, in, *kernel]; None for all else."""
    if node.op != "call_function" or node.target not in _WEIGHTED:
        return None
    weight = constant_of(_source(node))
    if weight is None or weight.dim() < 2 or weight.is_complex():
        return None
    if node.target is aten.convolution.default and node.args[_TRANSPOSED]:
        return weight.transpose(0, 1)
    return weight.mT if _WEIGHTED[node.target][1] else weight


def _source(node: Node) -> Any:
    """What a layer's weight is read from, before a dequantize."""
    source: Any = node.args[_WEIGHTED[node.target][0]]  # type: ignore[index]
    return source.args[0] if isinstance(source, Node) and is_dequantize(source) else source


def _from_graph(node: Node, name: str, backend: str) -> SparseLayerReport:
    """Of a backend that says nothing about its layers."""
    weight = _weight(node)
    assert weight is not None
    if not is_two_of_four(weight):
        return SparseLayerReport(name, backend, "no pattern", reason="its weight is not 2:4: torchkiln.sparsify prunes it")
    if backend == "tensorrt":
        return SparseLayerReport(name, backend, "left to the library", reason="TensorRT may take 2:4 kernels; a plan does not say for which layers")
    return SparseLayerReport(name, backend, "not supported", reason=_DENSE.get(backend, f"{backend} multiplies it dense"))


def _from_backend(row: dict[str, Any], by_weight: dict[str, list[str]], backend: str) -> SparseLayerReport:
    """Of one that does: under the module's name, where the weight is a layer's own. Takes the name out of several that have the weight."""
    weight = row["weight"]
    while weight not in by_weight and _SUFFIX.search(weight):
        weight = _SUFFIX.sub("", weight)
    names = by_weight.get(weight) or [row["label"]]
    name = names.pop(0) if len(names) > 1 else names[0]
    return SparseLayerReport(name, backend, row["outcome"], row["tactic"], row["sparse_us"], row["dense_us"], row["reason"])
