"""frozen_observers: the fake-quantize modules of torch.ao, after training, without the observers that could change them.

``fused_moving_avg_obs_fake_quant`` watches a range and rounds to it, each by a switch kept in a buffer. torch.export takes it for an operator that
changes the model's state, which an engine has not, though in a trained model the watching is switched off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten


def replace_frozen_observers(exported: ExportedProgram) -> None:
    """Replace, in place, each whose observer is switched off by the plain fake_quantize operator, or by its input where rounding is off too.

    Those that still observe are left, for the check for changed state to name.
    """
    graph = exported.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=aten.fused_moving_avg_obs_fake_quant.default):
        names = [argument.name for argument in node.target._schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if _is_on(exported, given["observer_on"]):
            continue
        replacement = given["self"]
        if _is_on(exported, given["fake_quant_on"]):
            with graph.inserting_before(node):
                replacement = _plain(graph, given)
            replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
    exported.graph_module.recompile()


def _plain(graph: torch.fx.Graph, given: dict[str, Any]) -> Node:
    bounds = (given["quant_min"], given["quant_max"])
    if given.get("per_row_fake_quant"):
        arguments = (given["self"], given["scale"], given["zero_point"], given["ch_axis"], *bounds)
        return graph.call_function(aten.fake_quantize_per_channel_affine.default, arguments)
    return graph.call_function(aten.fake_quantize_per_tensor_affine.tensor_qparams, (given["self"], given["scale"], given["zero_point"], *bounds))


def _is_on(exported: ExportedProgram, switch: object) -> bool:
    """Whether a switch, a buffer of one element, may be on."""
    name = exported.graph_signature.inputs_to_buffers.get(getattr(switch, "name", ""))
    value = exported.state_dict.get(name, exported.constants.get(name)) if name is not None else None
    return not isinstance(value, torch.Tensor) or bool(value.any())
