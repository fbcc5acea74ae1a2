"""probe: try one operator out on OpenVINO, the way it stands in the graph.

The frontend has no list of the operators it translates, and a translation may still refuse an argument or, with integers, give another
number (it divides negative integers differently, and the CPU plugin computes int64 in int32). So the node is taken out into a graph of its
own, at the sizes it was captured with, and converted; where integers or booleans are involved it is also run and compared with PyTorch.
Floating-point results need no such probe: the parity check of the whole engine sees them. A verdict is remembered for the process.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ...log import REJECTS, log
from ..node_values import tensors_of
from ..one_op import accepted_values, difference, one_op_graph, one_op_key
from ..quiet_logging import quiet_logging
from .library import core, import_openvino, without_telemetry
from .runtime import TYPE_NAMES, last_line

#: Elements beyond which an operator is not run, only converted: running it must not take long.
_MOST_ELEMENTS = 1 << 20
_verdicts: dict[str, str] = {}


def probe(node: Node) -> str:
    """'' when OpenVINO takes the node, else why not. About 1 ms for most operators seen for the first time, 30 ms with integers."""
    has_integers = any(not value.dtype.is_floating_point for value in tensors_of(node))
    key = one_op_key(node, with_shapes=has_integers)
    if key not in _verdicts:
        _verdicts[key] = _try_out(node, run=has_integers)
        if _verdicts[key]:
            log(REJECTS, "openvino: %s: %s", node.target, _verdicts[key])
    return _verdicts[key]


def _try_out(node: Node, *, run: bool) -> str:
    graph_module, inputs = one_op_graph(node)
    try:
        model = _convert(graph_module, inputs)
    except Exception as error:  # the frontend and torch's decompositions raise what they like: here it is the answer
        return f"OpenVINO cannot convert it ({last_line(error)})"
    if not run or sum(value.numel() for value in inputs) > _MOST_ELEMENTS:
        return ""
    drawn = accepted_values(graph_module, inputs)
    if drawn is None or any(value.dtype is torch.bfloat16 for value in drawn[0]):
        return ""  # numpy has no bfloat16 to run it with
    values, expected = drawn
    try:
        compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled([v.numpy() for v in values])
    except RuntimeError as error:
        return f"OpenVINO cannot run it ({last_line(error)})"
    found = difference(expected, [torch.from_numpy(results[port]) for port in compiled.outputs])
    return f"OpenVINO {found} here" if found else ""


def _convert(graph_module: GraphModule, inputs: list[torch.Tensor]) -> Any:
    """The graph as an ``openvino.Model`` of fixed shapes. Raises what the frontend raises when it has no translation."""
    try:
        return _translate(graph_module, inputs)
    except Exception:  # what the frontend cannot translate as it is, it may translate in the parts that a real build splits it into
        with without_telemetry(), warnings.catch_warnings(), quiet_logging():
            warnings.simplefilter("ignore")
            model = import_openvino().convert_model(torch.export.export(graph_module, tuple(inputs), strict=False))
        model.reshape({port: list(value.shape) for port, value in zip(model.inputs, inputs, strict=True)})
        return model


def _translate(graph_module: GraphModule, inputs: list[torch.Tensor]) -> Any:
    """The graph through the frontend alone, as it is: a hundred times faster than exporting and decomposing it first."""
    ov = import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    types = [value.dtype for value in inputs]
    decoder = TorchFXPythonDecoder(graph_module, dynamic_shapes=True, input_types=types)  # a name of its own: the frontend does not keep it alive
    model = frontend.convert(frontend.load(decoder))
    for port, value in zip(model.inputs, inputs, strict=True):
        port.get_node().set_element_type(getattr(ov.Type, TYPE_NAMES[value.dtype]))
        port.get_node().set_partial_shape(ov.PartialShape(list(value.shape)))
    model.validate_nodes_and_infer_types()
    return model
