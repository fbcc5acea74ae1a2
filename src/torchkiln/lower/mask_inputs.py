"""mask_inputs: which float inputs of a graph are attention masks, as far as the graph tells."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch.fx import Node

from .precision_rules import Rule

aten = torch.ops.aten
_SOFTMAXES = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, aten.log_softmax.int, aten._log_softmax.default)


def is_mask_input(placeholder: Node, rules: Mapping[Node, Rule], float32: Collection[Node]) -> bool:
    """Whether ``placeholder`` reaches a softmax, or the mask of an attention, through nothing but operators that follow their inputs.

    ``float32`` holds the nodes that compute float32 tensors: a way through sizes is no way of values. An activation meets a convolution,
    a product or a norm on its way; a mask is moved about, scaled and added to scores.
    """
    seen = {placeholder}
    waiting = [placeholder]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if (user.target in _SOFTMAXES and user.args[0] is node) or _is_attention_mask(node, user):
                return True
            if user not in seen and user in float32 and rules.get(user) is Rule.FOLLOW:
                seen.add(user)
                waiting.append(user)
    return False


def _is_attention_mask(node: Node, user: Node) -> bool:
    if user.target is not aten.scaled_dot_product_attention.default:
        return False
    return user.kwargs.get("attn_mask") is node or (len(user.args) > 3 and user.args[3] is node)
