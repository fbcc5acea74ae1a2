"""arguments: what the user gave as ``inputs`` and ``kwarg_inputs`` -> Inputs, their structure, and real example values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..engine.structure import Structure
from ..errors import UserError
from ..inputs import Input


@dataclass
class Arguments:
    """The call the engine is built for.

    ``args`` and ``kwargs`` hold real tensors at the opt shapes; ``inputs`` describes the tensor leaves in the order of ``structure``.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    structure: Structure
    inputs: tuple[Input, ...]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.structure.flatten((self.args, self.kwargs)))

    def at_shapes(self, shapes: Sequence[Sequence[int]], *, seed: int) -> Arguments:
        """The same call with tensors of these shapes: the given ones where the shape is theirs, else drawn at random."""
        leaves = []
        for position, (tensor, spec, shape) in enumerate(zip(self.tensors, self.inputs, shapes, strict=True)):
            same = tuple(tensor.shape) == tuple(shape)
            leaves.append(tensor if same else spec.random(shape, seed=seed + position, device=tensor.device))
        return self.with_tensors(leaves)

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Arguments:
        args, kwargs = self.structure.unflatten(list(tensors))
        return Arguments(tuple(args), dict(kwargs), self.structure, self.inputs)


def read_arguments(inputs: Any, kwarg_inputs: Mapping[str, Any] | None, device: torch.device, seed: int) -> Arguments:
    """Tensors and ``Input`` s, nested as the model takes them, as Arguments on ``device``.

    Raises UserError when ``inputs`` is no sequence or holds something other than tensors, Inputs, constants and containers of these.
    """
    if isinstance(inputs, (torch.Tensor, Input)):
        inputs = (inputs,)
    if not isinstance(inputs, (list, tuple)):
        raise UserError(f"inputs: expected a list of tensors or torchkiln.Input, got {type(inputs).__name__}")
    described: dict[int, Input] = {}
    counter = iter(range(10_000))

    def realise(value: Any) -> Any:
        if isinstance(value, Input):
            tensor = value.random(seed=seed + next(counter), device=device)
            described[id(tensor)] = value
            return tensor
        if isinstance(value, torch.Tensor):
            next(counter)
            # A tensor object of its own for each leaf, so that leaves can be told apart by identity.
            tensor = value.detach().to(device).view_as(value)
            described[id(tensor)] = _described(tensor)
            return tensor
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(realise(v) for v in value))
        if isinstance(value, (list, tuple)):
            return type(value)(realise(v) for v in value)
        if isinstance(value, Mapping):
            pairs = {k: realise(v) for k, v in value.items()}
            return pairs if type(value) is dict else type(value)(pairs)  # type: ignore[call-arg]
        return value

    args = tuple(realise(v) for v in inputs)
    kwargs = {k: realise(v) for k, v in (kwarg_inputs or {}).items()}
    structure, leaves = Structure.of((args, kwargs))
    if not leaves:
        raise UserError("inputs: expected at least one tensor or torchkiln.Input, got none")
    return Arguments(args, kwargs, structure, tuple(described[id(leaf)] for leaf in leaves))


def _described(tensor: torch.Tensor) -> Input:
    """The Input for a given tensor; integers drawn for other shapes stay within the values it holds (token ids, say)."""
    domain = None
    if tensor.numel() and not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        domain = (int(tensor.min()), int(tensor.max()) + 1)
    return Input(tuple(tensor.shape), dtype=tensor.dtype, tensor_domain=domain)
