"""Reference: the source model's own outputs, computed in float32 or float64, against which an engine is checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram

from ..capture.arguments import Arguments
from ..engine.structure import Structure
from ..fp32_math import fp32_math


class Reference:
    """The source model in the reference dtype. The caller's model is never changed: where it has another dtype, a copy is converted."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype
        module = model.module() if isinstance(model, ExportedProgram) else model
        tensors = [*module.parameters(), *module.buffers()]
        if any(t.dtype.is_floating_point and t.dtype != dtype for t in tensors):
            module = copy.deepcopy(module).to(dtype)
        self._module = module
        self._has_floats = any(t.dtype.is_floating_point for t in tensors)

    def outputs(self, arguments: Arguments) -> list[torch.Tensor]:
        """The model's output tensors, flat, for these arguments (floating inputs converted to the reference dtype)."""
        convert = self._has_floats or self.dtype != torch.float32
        cast = arguments.with_tensors([t.to(self.dtype) if convert and t.dtype.is_floating_point else t.clone() for t in arguments.tensors])
        with torch.inference_mode(), full_float32():
            result = self._module(*cast.args, **cast.kwargs)
        return flat_tensors(result)


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 as it says: on a GPU, torch computes float32 convolutions in TF32 unless told otherwise."""
    with fp32_math("ieee"):
        yield


def flat_tensors(result: Any) -> list[torch.Tensor]:
    """The tensors in a model's or an engine's result, flat, in order."""
    # Numbers that a model returns beside its tensors (a size) are constants of the structure here, leaves of the engine's.
    _, leaves = Structure.of(result)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
