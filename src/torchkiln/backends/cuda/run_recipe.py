"""run_recipe: run torch calls and launches over tensors, on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from .driver import Function
from .recipe import Kernel, Launch, Recipe, Ref


@cache
def find_op(name: str) -> Callable[..., Any]:
    """``"aten.addmm.out"`` -> the operator."""
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def call_op(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> Any:
    """Call an operator; one that makes a tensor of nothing makes it on ``device``."""
    op = find_op(name)
    if name.startswith(_MAKERS):
        return op(*args, **kwargs, device=device)
    return op(*args, **kwargs)


#: Operators that take no tensor.
_MAKERS = ("aten.full.", "aten.zeros.", "aten.ones.", "aten.empty.", "aten.arange.", "aten.scalar_tensor.", "aten.linspace.", "aten.eye.")


def resolve(value: Any, tensor_of: Callable[[str], torch.Tensor]) -> Any:
    """An argument of a torch call, with the tensors that its Refs name."""
    if isinstance(value, Ref):
        tensor = tensor_of(value.name)
        if not value.shape and not value.strides:
            return tensor
        return tensor.as_strided(value.shape, value.strides, tensor.storage_offset() + value.offset)
    if isinstance(value, (list, tuple)):
        return [resolve(part, tensor_of) for part in value]
    return value


def run_recipe(recipe: Recipe, functions: Mapping[Kernel, Function], operands: dict[str, torch.Tensor], stream: int) -> None:
    """Run a recipe; what torch returns is copied into "y" operands, and kept under its name otherwise."""
    device = next((t.device for t in operands.values()), torch.device("cuda"))
    for call in recipe.launches:
        if isinstance(call, Launch):
            functions[call.kernel].launch(call.grid, [operands[name].data_ptr() for name in call.operands], stream)
            continue
        args = resolve(call.args, operands.__getitem__)
        kwargs = {name: resolve(value, operands.__getitem__) for name, value in call.kwargs}
        results = call_op(call.op, args, kwargs, device)
        if call.out:
            continue
        for name, result in zip(call.results, as_sequence(results), strict=False):
            if name in operands and name.startswith("y"):
                if operands[name].data_ptr() != result.data_ptr():
                    adopt = operands[name].stride() == result.stride()
                    operands[name] = result if adopt else operands[name].copy_(result)
            elif name:
                operands[name] = result


def as_sequence(results: Any) -> Sequence[Any]:
    return results if isinstance(results, (list, tuple)) else (results,)
