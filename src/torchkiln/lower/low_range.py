"""low_range: numbers that float32 holds and a low precision does not.

Attention masks are built of numbers like -1e9 or ``finfo(float32).min``. Rounded to fp16 (the latter: to bf16 too) they become
``-inf``, and a row that is masked whole then gives NaN where the model gives a uniform row. So where such a value must be low, finite
numbers out of range become half of the largest number: half, so that adding a score still does not overflow. Real infinities stay
what they are, and so does what the model makes of them. At the other end, an epsilon like 1e-12 rounds to 0 in fp16, and divides by it.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .graph_edit import insert_call

aten = torch.ops.aten

#: Tensor -> (its version, smallest value, largest value), as long as the tensor lives.
_remembered: MutableMapping[torch.Tensor, tuple[int, float, float]] = WeakTensorKeyDictionary()


def range_limit(dtype: torch.dtype) -> float:
    """The largest magnitude that constants keep in ``dtype``: half of the dtype's own."""
    return torch.finfo(dtype).max / 2


def is_number_in_range(value: float, dtype: torch.dtype) -> bool:
    """Whether ``dtype`` holds ``value`` as something other than an infinity or zero it was not."""
    if value == 0 or not math.isfinite(value):
        return True
    return torch.finfo(dtype).smallest_normal <= abs(value) <= range_limit(dtype)


def has_number_out_of_range(node: Node, dtype: torch.dtype) -> bool:
    """Whether a number among a call's arguments is out of the range of ``dtype``."""
    numbers = [a for a in tree_leaves((node.args, dict(node.kwargs))) if isinstance(a, (int, float)) and not isinstance(a, bool)]
    return any(not is_number_in_range(n, dtype) for n in numbers if isinstance(n, float) or abs(n) < 2**62)  # slices end at 2**63 - 1


def exceeds_range(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether ``tensor`` holds a finite value beyond the limit."""
    if tensor.numel() == 0:
        return False
    limit = range_limit(dtype)
    low, high = _extremes(tensor)  # one pass, which settles it for nearly every weight
    if -limit <= low and high <= limit:
        return False
    finite = tensor[tensor.isfinite()]
    return bool((finite.abs() > limit).any())


def _extremes(tensor: torch.Tensor) -> tuple[float, float]:
    """The smallest and the largest value; remembered, since a search converts the same weights many times."""
    if tensor.is_inference():
        low, high = torch.aminmax(tensor)
        return low.item(), high.item()
    found = _remembered.get(tensor)
    if found is None or found[0] != tensor._version:
        low, high = torch.aminmax(tensor)
        found = _remembered[tensor] = (tensor._version, low.item(), high.item())
    return found[1], found[2]


def clamp_tensor(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` in ``dtype``, its finite values kept finite."""
    if not exceeds_range(tensor, dtype):
        return tensor.to(dtype)
    limit = range_limit(dtype)
    return torch.where(tensor.isinf(), tensor, tensor.clamp(-limit, limit)).to(dtype)


def insert_clamp(graph_module: GraphModule, node: Node, dtype: torch.dtype, *, before: Node) -> Node:
    """The same for a value that is computed at run time: nodes that clamp it and leave infinities alone."""
    limit = range_limit(dtype)
    clamped = insert_call(graph_module, aten.clamp.default, (node, -limit, limit), before=before, like=node)
    infinite = insert_call(graph_module, aten.isinf.default, (node,), before=before, like=node)
    return insert_call(graph_module, aten.where.self, (infinite, node, clamped), before=before, like=node)
