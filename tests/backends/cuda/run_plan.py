"""Build a plan without a GPU and run it on the CPU: kernels under the interpreter, at addresses in one real arena."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.backends.cuda.interpret import interpret_kernel
from torch.fx import GraphModule

from torchkiln.backends.cuda.assemble_plan import Codes, Constants, assemble_plan
from torchkiln.backends.cuda.check_plan import check_plan
from torchkiln.backends.cuda.compile_kernel import Compiled
from torchkiln.backends.cuda.plan import Bundle, KernelStep, Plan, decode_bundle, encode_bundle
from torchkiln.backends.cuda.recipe import Launch
from torchkiln.backends.cuda.runtime import LoadedPlan
from torchkiln.backends.cuda.tactics.registry import TORCH, Option, options_of
from torchkiln.backends.cuda.trace import Operation, trace
from torchkiln.backends.cuda.tuner import Choice

LIBRARIES = ("cudnn", "cublas", "sdpa")


class CpuPlan(LoadedPlan):
    """A plan whose kernels are interpreted."""

    def __init__(self, plan: Plan, kernels, constants) -> None:
        super().__init__(plan, [], constants, torch.device("cpu"))
        self._kernels = kernels

    def launcher(self, step, memory):
        run = step.run
        if not isinstance(run, KernelStep):
            return super().launcher(step, memory)
        kernel = self._kernels[run.code]

        def launch(stream):
            interpret_kernel(kernel, run.grid, [memory.tensor(index) for index in run.operands])

        return launch


def choose(operation: Operation, tactics: bool) -> Choice:
    """The first guess among torchkiln's own kernels, or torch."""
    if not tactics:
        return Choice(Option(TORCH, {}, operation.reference), None, {})
    options, rejects = options_of(operation, 0)
    own = [o for o in options if not o.tactic.startswith(LIBRARIES)] or [Option(TORCH, {}, operation.reference)]
    kernels = [launch.kernel for launch in own[0].recipe.launches if isinstance(launch, Launch)]
    return Choice(own[0], None, {kernel: Compiled(repr(kernel).encode(), "k", shared_bytes=0, threads=128) for kernel in kernels}, rejects)


def build_plan(graph_module: GraphModule, *, tactics: bool = True) -> tuple[Plan, CpuPlan, list[Operation]]:
    """A plan for a GPU without programmatic launch (compute capability 8.0), which the interpreter can follow."""
    traced = trace(graph_module, 80, 108, lambda op: "ieee")
    choices = [choose(operation, tactics) for operation in traced.operations]
    codes, constants = Codes(), Constants()
    kernels = {}
    plan = assemble_plan(traced, choices, codes, constants)
    for choice in choices:
        for kernel, compiled in choice.codes.items():
            kernels[codes.add(kernel, compiled)] = kernel
    plan = decode_bundle(encode_bundle(Bundle([plan], codes.held, {}))).plans[0]  # as it comes out of a file
    check_plan(plan, len(codes.held))
    return plan, CpuPlan(plan, kernels, constants.held), traced.operations


def run(loaded: CpuPlan, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run every step, over memory that holds NaN before."""
    memory = loaded.start(inputs)
    memory._arena.fill_(0xFF)
    for number, step in enumerate(loaded.plan.steps):
        loaded.launcher(step, memory)(0)
        for index in loaded._last_use[number]:
            memory._by_torch.pop(index, None)
    assert memory._counters is None or not memory._counters.any()
    return memory.outputs
