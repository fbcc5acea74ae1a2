"""examine: what TensorRT's parser refuses of a segment that it sees whole, as nodes of the segment's graph."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from ...errors import BuildFailed
from ...log import REJECTS, log
from ...partition.segment import Segment
from ...settings import CompileSettings, op_name
from ..contract import Candidate, Reject
from ..node_values import is_size_arithmetic
from ..one_op import one_op_graph, one_op_key
from ..onnx_export import first_line
from .configure import check_options
from .convert import convert_segment
from .library import Library, import_builder
from .network import parse_network


def examine(segment: Segment, candidate: Candidate, settings: CompileSettings) -> dict[Node, Reject]:
    """The nodes that the exporter or the parser refuses.

    The segment is converted and parsed whole, which is all the work where nothing is refused. Otherwise each kind of operator in it is tried by
    itself. {} also where no single operator is at fault: then the build fails with the message for the whole.
    """
    library = import_builder(candidate.targets)
    check_options(library, settings)
    try:
        errors = parse_network(library, convert_segment(segment, candidate.precision, all_weights=settings.takes_new_weights)).errors
    except BuildFailed as error:
        errors = str(error)
    if not errors:
        return {}
    log(REJECTS, "tensorrt: %s is refused whole: %s", segment.name, errors)
    return find_refused(segment, library, candidate.precision)


def find_refused(segment: Segment, library: Library, precision: torch.dtype) -> dict[Node, Reject]:
    """The nodes that are refused by themselves, each kind of operator (with its shapes) tried once."""
    reasons: dict[str, str] = {}
    refused: dict[Node, Reject] = {}
    for node in segment.graph_module.graph.nodes:
        if node.op != "call_function" or is_size_arithmetic(node) or not isinstance(node.meta.get("val"), (torch.Tensor, tuple, list)):
            continue
        key = one_op_key(node, with_shapes=True)
        if key not in reasons:
            reasons[key] = _reason_against(node, library, precision)
        if reasons[key]:
            refused[node] = Reject(op_name(node.target), reasons[key])
    return refused


def _reason_against(node: Node, library: Library, precision: torch.dtype) -> str:
    """Why a node alone is refused; "" when it is not."""
    graph_module, inputs = one_op_graph(node)
    # The precision pass reads what every node gives.
    FakeTensorProp(graph_module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)
    alone = Segment(str(node.target), graph_module, tuple({} for _ in inputs), tuple(inputs), 1)
    try:
        errors = parse_network(library, convert_segment(alone, precision)).errors
    except BuildFailed as error:
        return f"it cannot be exported to ONNX ({first_line(error)})"
    return f"TensorRT's parser refuses it ({errors})" if errors else ""
