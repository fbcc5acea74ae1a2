"""fuse_moments: the statistics of group and instance norms are a by-product of the convolution before them."""

from __future__ import annotations

import operator
from math import prod

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import conv as _conv  # noqa: F401  (registers the operators)
from ....fused_ops import norms as _norms  # noqa: F401
from ....lower.graph_edit import call_functions, constant_of, insert_call
from .emit import emit, put
from .match import arguments_of, reject, shape_of

aten = torch.ops.aten

_CONV = torch.ops.torchkiln.conv.default
_CONV_MOMENTS = torch.ops.torchkiln.conv_moments.default
_GROUP_NORM = torch.ops.torchkiln.group_norm.default

#: Up to how many positions a norm is left alone: it has its groups on chip, or nearly, and the convolution may be split over what it adds up.
FEW_POSITIONS = 4096


def fuse_moments(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of convolutions rewritten.

    ``group_norm(conv(..))`` of more than FEW_POSITIONS positions becomes ``y, moments = conv_moments(..)``, ``group_norm(y, .., moments)``, whatever
    else reads the convolution; all norms that read it take its moments.

    What is refused is left as it is, and (node, reason) appended to ``graph_module.meta["rejects"]``.
    """
    graph_module.meta.setdefault("rejects", [])
    count = 0
    for conv in call_functions(graph_module, _CONV):
        norms = [user for user in conv.users if user.target is _GROUP_NORM and user.args[0] is conv and arguments_of(user)["moments"] is None]
        if not norms or prod(shape_of(conv)[2:]) <= FEW_POSITIONS:
            continue
        reason = _why_not(conv)
        if reason:
            reject(graph_module, conv, reason)
            continue
        both = insert_call(graph_module, _CONV_MOMENTS, conv.args, before=conv)
        y = insert_call(graph_module, operator.getitem, (both, 0), before=conv)
        moments = insert_call(graph_module, operator.getitem, (both, 1), before=conv)
        put(graph_module, conv, y)
        for norm in norms:
            emit(graph_module, norm, _GROUP_NORM, (*norm.args, moments))
        count += 1
    graph_module.recompile()
    return count


def _why_not(conv: Node) -> str:
    given = arguments_of(conv)
    if given["transposed"]:
        return "no kernel of transposed convolutions gives moments"
    if given["groups"] > 1 and shape_of(given["weight"])[1] < 4:
        return "no kernel of depthwise convolutions gives moments"
    if constant_of(given["weight"]) is None:
        return "the weight is computed: no kernel that gives moments takes it"
    joined = [user.name for user in conv.users if user.target is aten.cat.default]
    return f"{joined[0]} concatenates it: it is written in place there" if joined else ""
