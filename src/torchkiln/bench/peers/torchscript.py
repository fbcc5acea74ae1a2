"""TorchScript, traced and scripted: frozen, and passed through ``optimize_for_inference`` where that helps."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass

import torch
from torch.jit import ScriptModule

from ...log import STEPS, log
from ..case import Case, InputSet
from ..measuring import synchronizer
from .contract import Refusal, Runner

_WARM_UP_CALLS = 3  # the profiling executor compiles at the second call
_TRIAL_CALLS = 5


@dataclass(frozen=True)
class TorchScript:
    """``torch.jit.trace`` or ``torch.jit.script`` (``how``), frozen, with and without ``optimize_for_inference``: the faster of the two.

    Whether that pass pays depends on the model (on the CPU it moves whole regions to oneDNN's own layouts), so a short trial decides.
    """

    name: str
    how: str
    slow_build: bool = False

    def refuse(self, case: Case, precision: torch.dtype) -> Refusal | None:
        return None

    def build(self, case: Case, precision: torch.dtype) -> Runner:
        model, input_sets = case.copy_model(precision), case.cast_inputs(precision)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the deprecation of TorchScript is not news to who asks for it
            script = self._script(model, input_sets[0])
            frozen = _freeze(script)
            frozen_s = _trial(frozen, input_sets[0], case)
            try:
                # On a second frozen copy, because the pass changes its argument even when it fails.
                optimized = torch.jit.optimize_for_inference(_freeze(script))
                optimized_s = _trial(optimized, input_sets[0], case)
            except RuntimeError as error:  # what oneDNN cannot do shows only when the module runs
                log(STEPS, "bench: %s: optimize_for_inference failed, measuring the frozen module: %s", self.name, error)
                return Runner(frozen, input_sets, options="frozen (optimize_for_inference fails on this model)")
        if optimized_s < frozen_s:
            return Runner(optimized, input_sets, options="frozen, optimize_for_inference")
        return Runner(frozen, input_sets, options="frozen (optimize_for_inference is slower on this model)")

    def _script(self, model: torch.nn.Module, inputs: InputSet) -> ScriptModule:
        if isinstance(model, ScriptModule):
            return model
        if self.how == "traced":
            return torch.jit.trace(model, inputs, check_trace=False, strict=False)
        return torch.jit.script(model)


def _freeze(script: ScriptModule) -> ScriptModule:
    """A frozen copy. A file that was frozen before it was saved has no mode any more, and nothing left to freeze."""
    return torch.jit.freeze(script) if hasattr(script, "training") else copy.deepcopy(script)


def _trial(module: ScriptModule, inputs: InputSet, case: Case) -> float:
    """The shortest of a few calls, in seconds."""
    synchronize = synchronizer(case.device)
    times = []
    for _ in range(_WARM_UP_CALLS + _TRIAL_CALLS):
        synchronize()
        start = time.perf_counter()
        module(*inputs)
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times[_WARM_UP_CALLS:])


TRACED = TorchScript("torchscript-traced", "traced")
SCRIPTED = TorchScript("torchscript-scripted", "scripted")
