"""torch.compile in its three modes, with Inductor's freezing on."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..case import Case
from .contract import Refusal, Runner


@dataclass(frozen=True)
class Compiled:
    """``torch.compile(model, mode=mode, dynamic=False)`` with ``torch._inductor.config.freezing``, compiled at the first calls of the build."""

    name: str
    mode: str | None
    slow_build: bool = False

    def refuse(self, case: Case, precision: torch.dtype) -> Refusal | None:
        if self.mode == "reduce-overhead" and case.device.type != "cuda":
            return Refusal("skipped", f"reduce-overhead means CUDA graphs; on {case.device.type} it is the same as compile")
        return None

    def build(self, case: Case, precision: torch.dtype) -> Runner:
        import torch._inductor.config as inductor_config

        model, input_sets = case.copy_model(precision), case.cast_inputs(precision)
        compiled = torch.compile(own_forward(model), mode=self.mode, dynamic=False)
        # Freezing reads the configuration while it compiles, which is here; several calls, because CUDA graphs are recorded later than the first.
        with inductor_config.patch(freezing=True), torch.inference_mode():
            for _ in range(3):
                for inputs in input_sets:
                    compiled(*inputs)
        return Runner(compiled, input_sets, options=f"mode={self.mode or 'default'}, freezing")


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """``model`` as a function with a code object of its own.

    Dynamo keeps what it compiled by code object. Runners that shared one would share its recompile limit and search each other's entries at every
    call, and ``torch._dynamo.reset`` between them would throw away those that are still to be measured.
    """

    def forward(*args: Any) -> Any:
        return model(*args)

    return types.FunctionType(forward.__code__.replace(), forward.__globals__, forward.__name__, None, forward.__closure__)


DEFAULT = Compiled("compile", None)
REDUCE_OVERHEAD = Compiled("compile-reduce-overhead", "reduce-overhead")
MAX_AUTOTUNE = Compiled("compile-max-autotune", "max-autotune", slow_build=True)
