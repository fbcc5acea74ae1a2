"""Structure: how nested tuples, lists and dicts of tensors become a flat list and back, in a form a JSON file can hold.

torch's own TreeSpec can import modules while it is read back from text; this one cannot. A structure of ``(args, kwargs)``
describes a call: its errors speak of arguments and its paths read ``args[0]`` and ``kwargs['mask']``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..errors import CompilerBug, InputMismatch
from .structure_json import MAX_NODES, node_as_json, node_from_json
from .structure_nodes import Branch, Leaf, Node, build_value, describe, describe_value, join_path, node_of, parts_of, walk_leaves


@dataclass(frozen=True)
class Structure:
    """The shape of a nested value. Two structures are equal when they nest the same containers, keys and constants."""

    root: Node

    @classmethod
    def of(cls, value: Any) -> tuple[Structure, list[Any]]:
        """The structure of ``value`` and its leaves in order.

        Leaves are tensors and SymInts; None, bool, int, float and str are kept as constants. Containers: tuple, list, dict,
        OrderedDict, namedtuple (and torch's named return types); other mappings are kept as dict. Raises UserError naming the path
        and the type of anything else.
        """
        leaves: list[Any] = []
        root = node_of(value, "", 0, leaves)
        return cls(root), leaves

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The leaves, in order."""
        return tuple(leaf for _, leaf in walk_leaves(self.root, ""))

    @cached_property
    def leaf_count(self) -> int:
        return len(self.leaves)

    @cached_property
    def call(self) -> tuple[Branch, Branch] | None:
        """The positional and the keyword arguments when this is the structure of ``(args, kwargs)``, else None."""
        root = self.root
        if not (isinstance(root, Branch) and root.kind == "tuple" and len(root.children) == 2):
            return None
        args, kwargs = root.children
        if not (isinstance(args, Branch) and args.kind == "tuple" and isinstance(kwargs, Branch) and kwargs.kind == "dict"):
            return None
        named = all(isinstance(key, str) and key.isidentifier() for key in kwargs.keys)
        return (args, kwargs) if named else None

    def leaf_paths(self) -> list[str]:
        """Where each leaf is: ``args[0]`` and ``kwargs['mask']`` for a call, ``['out'][1]`` otherwise ('' for a lone tensor)."""
        if self.call is not None:
            args, kwargs = self.call
            return [path for path, _ in [*walk_leaves(args, "args"), *walk_leaves(kwargs, "kwargs")]]
        return [path for path, _ in walk_leaves(self.root, "")]

    def signature(self) -> str:
        """The expected value in one line, as ``(tensor, [tensor, tensor], mask=tensor, flag=True)``."""
        if self.call is not None:
            args, kwargs = self.call
            named = [f"{key}={describe(child)}" for key, child in zip(kwargs.keys, kwargs.children, strict=True)]
            return f"({', '.join([*map(describe, args.children), *named])})"
        return describe(self.root)

    def flatten(self, value: Any, where: str = "") -> Sequence[Any]:
        """The leaves of ``value`` in order; ``where`` opens the message of an error ("engine", a model's name).

        Raises InputMismatch naming the path, what was expected and what came, also when a constant differs.
        """
        leaves = self._fast_flatten(value)
        if leaves is not None:
            return leaves
        found: list[Any] = []
        prefix = f"{where}: " if where else ""
        if self.call is not None:
            args, kwargs = value
            expected_args, expected_kwargs = self.call
            self._check_call(expected_args, expected_kwargs, args, kwargs, prefix)
            self._flatten(expected_args, args, "args", prefix, found)
            self._flatten(expected_kwargs, kwargs, "kwargs", prefix, found)
        else:
            self._flatten(self.root, value, "", prefix, found)
        return found

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """The nested value with ``leaves`` in their places. Raises CompilerBug when their number is wrong."""
        if len(leaves) != self.leaf_count:
            raise CompilerBug(f"unflatten: expected {self.leaf_count} leaves, got {len(leaves)}")
        if self._is_flat_tuple:
            return tuple(leaves)
        return build_value(self.root, iter(leaves))

    @cached_property
    def _is_flat_tuple(self) -> bool:
        root = self.root
        return isinstance(root, Branch) and root.kind == "tuple" and all(isinstance(child, Leaf) for child in root.children)

    @cached_property
    def _fast_flatten(self) -> Callable[[Any], Sequence[Any] | None]:
        """A closure for the common call, positional tensors alone; it answers None for anything it does not take as it is."""
        tensor = torch.Tensor
        if self.call is None or not all(leaf.kind == "tensor" for leaf in self.leaves):
            return lambda value: None
        args, kwargs = self.call
        if kwargs.children or not all(isinstance(child, Leaf) for child in args.children):
            return lambda value: None
        count = len(args.children)

        def flatten_one(value: Any) -> Sequence[Any] | None:
            args, kwargs = value
            return args if len(args) == 1 and not kwargs and isinstance(args[0], tensor) else None

        def flatten_many(value: Any) -> Sequence[Any] | None:
            args, kwargs = value
            if len(args) != count or kwargs:
                return None
            for leaf in args:
                if not isinstance(leaf, tensor):
                    return None
            return args

        return flatten_one if count == 1 else flatten_many

    def _check_call(self, expected_args: Branch, expected_kwargs: Branch, args: Any, kwargs: Any, prefix: str) -> None:
        problems = []
        if len(args) < len(expected_args.children):
            problems.append(f"missing {', '.join(f'args[{i}]' for i in range(len(args), len(expected_args.children)))}")
        elif len(args) > len(expected_args.children):
            problems.append(f"got {len(args)} positional arguments where {len(expected_args.children)} are expected")
        missing = [repr(key) for key in expected_kwargs.keys if key not in kwargs]
        extra = [repr(key) for key in kwargs if key not in expected_kwargs.keys]
        if missing:
            problems.append(f"missing keyword {', '.join(missing)}")
        if extra:
            problems.append(f"unexpected keyword {', '.join(extra)}")
        if problems:
            raise InputMismatch(f"{prefix}{'; '.join(problems)}. Call it as {self.signature()}, as it was compiled.")

    def _flatten(self, node: Node, value: Any, path: str, prefix: str, found: list[Any]) -> None:
        if isinstance(node, Branch):
            parts = parts_of(node, value)
            if parts is None:
                self._mismatch(node, value, path, prefix)
            for key, child, part in zip(node.keys, node.children, parts, strict=True):  # type: ignore[arg-type]
                self._flatten(child, part, join_path(path, node, key), prefix, found)
        elif not node.accepts(value):
            self._mismatch(node, value, path, prefix)
        elif isinstance(node, Leaf):
            found.append(value)

    def _mismatch(self, node: Node, value: Any, path: str, prefix: str) -> None:
        raise InputMismatch(
            f"{prefix}{path or 'value'}: expected {describe(node)}, got {describe_value(value)}. Pass {self.signature()}, as it was compiled."
        )

    def as_json(self) -> Any:
        return node_as_json(self.root)

    @classmethod
    def from_json(cls, data: Any) -> Structure:
        """Raises CorruptEngineFile. Nesting is bounded by MAX_DEPTH, size by MAX_NODES. Nothing is imported."""
        return cls(node_from_json(data, 0, [MAX_NODES]))
