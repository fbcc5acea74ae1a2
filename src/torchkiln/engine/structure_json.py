"""A Structure's nodes as JSON values, and back, with nesting and size bounded and nothing imported."""

from __future__ import annotations

import math
from collections import namedtuple
from typing import Any

from ..errors import CorruptEngineFile
from .structure_nodes import CONSTANTS, LEAF_KINDS, MAPPINGS, MAX_DEPTH, Branch, Constant, Leaf, Node, mapping_branch

MAX_NODES = 100_000


def node_as_json(node: Node) -> Any:
    """A node as JSON values."""
    if isinstance(node, Leaf):
        return {"leaf": node.kind}
    if isinstance(node, Constant):
        finite = not isinstance(node.value, float) or math.isfinite(node.value)
        return {"constant": node.value} if finite else {"float": str(node.value)}
    children = [node_as_json(child) for child in node.children]
    if node.kind in ("tuple", "list"):
        return {node.kind: children}
    pairs = [[key, child] for key, child in zip(node.keys, children, strict=True)]
    return {node.kind: pairs, "name": node.type_name} if node.kind == "namedtuple" else {node.kind: pairs}


def node_from_json(data: Any, depth: int, budget: list[int]) -> Node:
    """The node of ``node_as_json``'s result; ``budget`` counts down from MAX_NODES. Raises CorruptEngineFile."""
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise CorruptEngineFile(f"structure: nested deeper than {MAX_DEPTH} or larger than {MAX_NODES} nodes")
    if not isinstance(data, dict) or not data:
        raise CorruptEngineFile(f"structure: expected an object, got {type(data).__name__}")
    kind, value = next(iter(data.items()))
    if len(data) != (2 if kind == "namedtuple" else 1):
        raise CorruptEngineFile(f"structure: {kind!r}: unexpected members {sorted(data)}")
    if kind == "leaf" and value in LEAF_KINDS:
        return Leaf(value)
    if kind == "constant" and type(value) in CONSTANTS:
        return Constant(value)
    if kind == "float" and value in ("inf", "-inf", "nan"):
        return Constant(float(value))
    if kind in ("tuple", "list") and isinstance(value, list):
        children = tuple(node_from_json(child, depth + 1, budget) for child in value)
        return Branch(kind, tuple(range(len(children))), children, "", list if kind == "list" else tuple)
    if kind in (*MAPPINGS, "namedtuple") and isinstance(value, list):
        if not all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in value):
            raise CorruptEngineFile(f"structure: {kind}: expected [key, structure] pairs")
        keys = tuple(pair[0] for pair in value)
        if len(set(keys)) != len(keys):
            raise CorruptEngineFile(f"structure: {kind}: a key is there twice in {keys}")
        children = tuple(node_from_json(pair[1], depth + 1, budget) for pair in value)
        if kind in MAPPINGS:
            return mapping_branch(kind, keys, children)
        return _namedtuple_branch(data.get("name"), keys, children)
    raise CorruptEngineFile(f"structure: unknown or malformed node {kind!r}")


def _namedtuple_branch(name: Any, fields: tuple[Any, ...], children: tuple[Node, ...]) -> Branch:
    """A namedtuple class of the same name and fields: the original's module is not imported on load."""
    try:
        made: Any = namedtuple(name, fields)  # type: ignore[misc]
    except (TypeError, ValueError) as error:
        raise CorruptEngineFile(f"structure: namedtuple {name!r} with fields {fields}: {error}") from None
    return Branch("namedtuple", fields, children, name, made._make)
