"""split_heads: heads taken apart by a view that joins them to the batch first are taken apart directly.

[S, B, H*D] -> view [S, B*H, D] -> transpose -> view [B, H, S, D], as torchvision's and torch's multi-head attention have it, is
view [S, B, H, D] -> permute. The first form is possible only where S and B lie densely, and would cost a copy after a joint projection of q, k and v.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from ....lower.graph_edit import call_functions, insert_call
from ....lower.remove_dead_code import remove_dead_code
from .emit import put

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def split_heads(graph_module: GraphModule) -> int:
    """Rewrite in place; returns the number of operands rewritten."""
    count = 0
    for last in call_functions(graph_module, *_VIEWS):
        swap = last.args[0]
        if not isinstance(swap, Node) or not _swaps(swap) or len(swap.users) != 1:
            continue
        first = swap.args[0]
        if not isinstance(first, Node) or first.target not in _VIEWS or len(first.users) != 1:
            continue
        source = first.args[0]
        shapes = [tuple(node.meta["val"].shape) for node in (source, first, last)]  # type: ignore[union-attr]
        if [len(shape) for shape in shapes] != [3, 3, 4] or not all(isinstance(size, int) for shape in shapes for size in shape):
            continue
        (s, b, channels), (s1, joined, d1), (b2, h, s2, d) = shapes
        if (s, b, d) != (s1, b2, d1) or s2 != s or joined != b * h or channels != h * d:
            continue
        apart = insert_call(graph_module, aten.reshape.default, (source, [s, b, h, d]), before=last, like=last)
        put(graph_module, last, insert_call(graph_module, aten.permute.default, (apart, [1, 2, 0, 3]), before=last, like=last))
        count += 1
    if count:
        remove_dead_code(graph_module)
        graph_module.recompile()
    return count


def _swaps(node: Node) -> bool:
    """Whether it exchanges the first two of three dimensions."""
    if node.target is aten.permute.default:
        return [int(d) % 3 for d in node.args[1]] == [1, 0, 2]  # type: ignore[arg-type, union-attr]
    return node.target is aten.transpose.int and {int(node.args[1]) % 3, int(node.args[2]) % 3} == {0, 1}  # type: ignore[arg-type]
