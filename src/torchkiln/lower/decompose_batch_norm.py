"""decompose_batch_norm: an inference batch norm that could not be folded becomes one multiplication and one addition.

With the statistics reduced to two constants a channel, every backend fuses it with its neighbours (a ReLU before, say).
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from .batch_norm import BATCH_NORMS, read_batch_norm
from .graph_edit import call_functions, insert_call, insert_constant

aten = torch.ops.aten


def decompose_batch_norm(graph_module: GraphModule) -> int:
    """Returns the number of batch norms rewritten."""
    rewritten = 0
    for node in call_functions(graph_module, *BATCH_NORMS):
        affine = read_batch_norm(node)
        if affine is None:
            continue
        value = affine.source.meta["val"]
        if value.dtype != affine.result.meta["val"].dtype:
            continue
        shape = (-1, *[1] * (value.dim() - 2))
        scale = insert_constant(graph_module, f"{node.name}_scale", affine.scale.to(value.dtype).reshape(shape), before=node)
        shift = insert_constant(graph_module, f"{node.name}_shift", affine.shift.to(value.dtype).reshape(shape), before=node)
        scaled = insert_call(graph_module, aten.mul.Tensor, (affine.source, scale), before=node)
        shifted = insert_call(graph_module, aten.add.Tensor, (scaled, shift), before=node)
        affine.result.replace_all_uses_with(shifted)
        affine.erase()
        rewritten += 1
    if rewritten:
        graph_module.recompile()
    return rewritten
