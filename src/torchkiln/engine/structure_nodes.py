"""The nodes a Structure is made of: leaves, constants and containers, how a value becomes them and how they become a value."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UserError

MAX_DEPTH = 64

LEAF_KINDS = ("tensor", "int", "float", "bool")
CONSTANTS = (type(None), bool, int, float, str)
MAPPINGS = ("dict", "ordered_dict")


@dataclass(frozen=True)
class Leaf:
    """A value the graph computes: a tensor, or the number a SymInt, SymFloat or SymBool stands for."""

    kind: str = "tensor"

    def accepts(self, value: Any) -> bool:
        if self.kind == "tensor":
            return isinstance(value, torch.Tensor)
        return leaf_kind(value) == self.kind or type(value).__name__ == self.kind


@dataclass(frozen=True)
class Constant:
    """A value that is the same in every call: None, bool, int, float or str."""

    value: Any

    def accepts(self, value: Any) -> bool:
        same_nan = isinstance(value, float) and isinstance(self.value, float) and math.isnan(value) and math.isnan(self.value)
        return type(value) is type(self.value) and (value == self.value or same_nan)


@dataclass(frozen=True)
class Branch:
    """A container. ``kind``: tuple, list, dict, ordered_dict or namedtuple; ``keys``: positions, dict keys or field names."""

    kind: str
    keys: tuple[Any, ...]
    children: tuple[Node, ...]
    type_name: str = ""
    make: Callable[[list[Any]], Any] = field(default=tuple, compare=False, repr=False)


Node = Leaf | Constant | Branch


def leaf_kind(value: Any) -> str | None:
    if isinstance(value, torch.Tensor):
        return "tensor"
    for kind, symbolic in (("int", torch.SymInt), ("float", torch.SymFloat), ("bool", torch.SymBool)):
        if isinstance(value, symbolic):
            return kind
    return None


def node_of(value: Any, path: str, depth: int, leaves: list[Any]) -> Node:
    if depth > MAX_DEPTH:
        raise UserError(f"{path[:80]}...: nested deeper than {MAX_DEPTH} containers (or contains itself): flatten it")
    kind = leaf_kind(value)
    if kind is not None:
        leaves.append(value)
        return Leaf(kind)
    if type(value) in CONSTANTS:
        return Constant(value)
    fields = _field_names(value)
    if fields is not None:
        plain = hasattr(type(value), "_make")
        make = type(value)._make if plain else type(value)
        branch = Branch("namedtuple", fields, (), type(value).__name__, make)
        parts = list(value)
    elif isinstance(value, (tuple, list)):
        listed = isinstance(value, list)
        branch = Branch("list" if listed else "tuple", tuple(range(len(value))), (), "", list if listed else tuple)
        parts = list(value)
    elif isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise UserError(f"{path or 'value'}: expected str or int keys, got {key!r} ({type(key).__name__})")
        branch = mapping_branch("ordered_dict" if type(value) is OrderedDict else "dict", tuple(value))
        parts = list(value.values())
    else:
        raise UserError(
            f"{path or 'value'}: expected a tensor, None, bool, int, float, str, or a tuple, list, dict or namedtuple of them, "
            f"got {type(value).__module__}.{type(value).__qualname__}. Wrap the model so that it takes and returns those."
        )
    children = tuple(node_of(part, join_path(path, branch, key), depth + 1, leaves) for key, part in zip(branch.keys, parts, strict=True))
    return Branch(branch.kind, branch.keys, children, branch.type_name, branch.make)


def _field_names(value: Any) -> tuple[str, ...] | None:
    """The fields of a namedtuple or of one of torch's named return types (torch.max along a dimension), else None."""
    if not isinstance(value, tuple):
        return None
    cls: Any = type(value)
    if hasattr(cls, "_fields"):
        return tuple(cls._fields)
    return tuple(cls.__match_args__)[: cls.n_sequence_fields] if hasattr(cls, "n_sequence_fields") else None


def mapping_branch(kind: str, keys: tuple[Any, ...], children: tuple[Node, ...] = ()) -> Branch:
    container: Any = OrderedDict if kind == "ordered_dict" else dict
    return Branch(kind, keys, children, "", lambda parts: container(zip(keys, parts, strict=True)))


def parts_of(node: Branch, value: Any) -> list[Any] | None:
    """The children of ``value`` in the order of ``node``, None when it is another container."""
    if node.kind in MAPPINGS:
        # Order is the structure's: a caller may list a dict's keys as it likes.
        if not isinstance(value, Mapping) or len(value) != len(node.keys) or any(key not in value for key in node.keys):
            return None
        return [value[key] for key in node.keys]
    fields = _field_names(value)
    if node.kind == "namedtuple":
        return list(value) if fields == node.keys else None
    if fields is not None or not isinstance(value, list if node.kind == "list" else tuple) or len(value) != len(node.keys):
        return None
    return list(value)


def build_value(node: Node, leaves: Iterator[Any]) -> Any:
    if isinstance(node, Leaf):
        return next(leaves)
    if isinstance(node, Constant):
        return node.value
    return node.make([build_value(child, leaves) for child in node.children])


def walk_leaves(node: Node, path: str) -> list[tuple[str, Leaf]]:
    if isinstance(node, Leaf):
        return [(path, node)]
    if isinstance(node, Constant):
        return []
    return [found for key, child in zip(node.keys, node.children, strict=True) for found in walk_leaves(child, join_path(path, node, key))]


def join_path(path: str, node: Branch, key: Any) -> str:
    return f"{path}.{key}" if node.kind == "namedtuple" else f"{path}[{key!r}]"


def describe(node: Node) -> str:
    if isinstance(node, Leaf):
        return node.kind
    if isinstance(node, Constant):
        return repr(node.value)
    parts = [describe(child) for child in node.children]
    if node.kind == "tuple":
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    if node.kind == "list":
        return f"[{', '.join(parts)}]"
    if node.kind == "namedtuple":
        return f"{node.type_name}({', '.join(f'{key}={part}' for key, part in zip(node.keys, parts, strict=True))})"
    return f"{{{', '.join(f'{key!r}: {part}' for key, part in zip(node.keys, parts, strict=True))}}}"


def describe_value(value: Any) -> str:
    """What came, in a few words; never the contents of a tensor or a long string."""
    try:
        text = describe(node_of(value, "", 0, []))
    except UserError:
        text = f"{type(value).__module__}.{type(value).__qualname__}"
    return text if len(text) <= 200 else f"{text[:197]}..."
