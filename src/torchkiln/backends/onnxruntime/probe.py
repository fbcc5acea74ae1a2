"""probe: whether an operator has a way to ONNX. The exporter's table is asked first; what is not in it is tried out by itself.

An operator that is not in the table may still be split into operators that are, which only the exporter knows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.fx import Node

from ...log import REJECTS, log
from ..one_op import accepted_values, difference, one_op_graph, one_op_key
from ..onnx_export import export_onnx, first_line, import_onnx_ir
from .library import import_onnxruntime

_verdicts: dict[str, str] = {}


def probe(node: Node) -> str:
    """'' when the node can be exported, else why not. A second for an operator that is not in the exporter's table, once."""
    if _is_registered(node.target):
        return ""
    key = one_op_key(node, with_shapes=False)
    if key not in _verdicts:
        _verdicts[key] = _try_out(node)
        if _verdicts[key]:
            log(REJECTS, "onnxruntime: %s: %s", node.target, _verdicts[key])
    return _verdicts[key]


@cache
def _is_registered(target: object) -> bool:
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # not a public name: without it every operator is tried out
        return False
    return _registry(ONNXRegistry).is_registered(target)


@cache
def _registry(registry_class: Any) -> Any:
    import_onnx_ir()
    return registry_class.from_torchlib()


def _try_out(node: Node) -> str:
    graph_module, inputs = one_op_graph(node)
    try:
        program = export_onnx(torch.export.export(graph_module, tuple(inputs), strict=False), optimize=False)
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # a refusal is an answer, not a line on standard error
        session = ort.InferenceSession(program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exporter and the library raise what they like: here it is the answer
        return f"it cannot be exported to ONNX ({type(error).__name__}: {first_line(error)})"
    drawn = accepted_values(graph_module, inputs)
    if drawn is None or len(session.get_inputs()) != len(inputs) or any(value.dtype is torch.bfloat16 for value in drawn[0]):
        return ""  # numpy has no bfloat16 to run it with
    values, expected = drawn
    try:
        results = session.run(None, {port.name: value.numpy() for port, value in zip(session.get_inputs(), values, strict=True)})
    except Exception as error:  # the library raises classes of its own, which share no base
        return f"ONNX Runtime cannot run it ({type(error).__name__}: {first_line(error)})"
    found = difference(expected, [torch.from_numpy(result) for result in results])
    return f"ONNX Runtime {found} here" if found else ""
