"""node_values: what a node of the lowered graph takes and gives, as its meta says. For the backends' ``supports``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Node


def values_of(node: Node) -> Iterator[object]:
    """What a node takes and gives: fake tensors and symbolic numbers."""
    for source in (*node.all_input_nodes, node):
        value = source.meta.get("val")
        yield from value if isinstance(value, (tuple, list)) else (value,)


def tensors_of(node: Node) -> Iterator[torch.Tensor]:
    """The (fake) tensors that a node takes and gives."""
    for value in values_of(node):
        if isinstance(value, torch.Tensor):
            yield value


def is_unbacked(value: object) -> bool:
    """Whether a shape or number depends on the data.

    Not judged by the operator's tags: index with integer tensors has a fixed shape and the same tag as index with a mask.
    """
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)) and bool(free_unbacked_symbols(value))


def is_effect(node: Node) -> bool:
    """A run-time check or another node that computes nothing anyone reads."""
    return node.meta.get("val") is None and not node.users


def is_random(node: Node) -> bool:
    """Whether the operator draws random numbers. Attention with dropout_p = 0 (its fifth argument, 0 where not given) does not, tag or no tag."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    if not str(node.target).startswith("aten.scaled_dot_product_attention"):
        return True
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    return not (isinstance(dropout, (int, float)) and dropout == 0)


def is_size_arithmetic(node: Node) -> bool:
    """Python operators on sizes, and picking from a tuple: they go along with their neighbours."""
    return getattr(node.target, "__module__", "") in ("_operator", "operator", "math", "builtins")
