"""check_plan: whether a plan that was read from a file stays within its own memory. What it computes is not looked at: that is its machine code."""

from __future__ import annotations

from typing import Any

from ...errors import CorruptEngineFile
from .plan import PLACES, KernelStep, Plan, Step, Tensor
from .recipe import refs_in


def check_plan(plan: Plan, code_count: int) -> None:
    """Raises CorruptEngineFile when a step or a tensor names what there is not, or a tensor reaches beyond the memory that it is part of.

    Constants are not at hand here: see ``LoadedPlan``.
    """
    for value, what in ((plan.arena_bytes, "arena_bytes"), (plan.counters, "counters")):
        if not _is_count(value):
            raise CorruptEngineFile(f"cuda plan: {what}: expected a number of at least 0, got {value!r:.50}")
    for number, tensor in enumerate(plan.tensors):
        reason = _why_not(plan, tensor)
        if reason:
            raise CorruptEngineFile(f"cuda plan: tensor {number}: {reason}")
    for number, step in enumerate(plan.steps):
        if not _is_index(step.info, len(plan.infos)):
            raise CorruptEngineFile(f"cuda plan: step {number}: no operation {step.info!r:.50}")
        run = step.run
        if isinstance(run, KernelStep):
            if not _is_index(run.code, code_count):
                raise CorruptEngineFile(f"cuda plan: step {number}: no machine code {run.code!r:.50}")
            if not all(_is_count(size) and size for size in run.grid):
                raise CorruptEngineFile(f"cuda plan: step {number}: a grid of {run.grid!r:.50}")
        for index in _named(step):
            if not _is_index(index, len(plan.tensors)):
                raise CorruptEngineFile(f"cuda plan: step {number}: no tensor {index!r:.50}")
    for index in plan.output_tensors:
        if not _is_index(index, len(plan.tensors)):
            raise CorruptEngineFile(f"cuda plan: no tensor {index!r:.50} for an output")


def _named(step: Step) -> list[Any]:
    """The plan's tensors that a step names."""
    if isinstance(step.run, KernelStep):
        return list(step.run.operands)
    refs = [int(ref.name) for ref in refs_in((step.run.args, [value for _, value in step.run.kwargs]))]
    return refs + [index for index in step.run.results if index != -1]


def _why_not(plan: Plan, tensor: Tensor) -> str:
    if tensor.place not in PLACES:
        return f"in an unknown place, {tensor.place!r:.50}"
    spec = tensor.spec
    if len(spec.shape) != len(spec.strides) or not all(_is_count(size) for size in (*spec.shape, *spec.strides, tensor.offset, tensor.index)):
        return f"shape {spec.shape!r:.50}, strides {spec.strides!r:.50}, offset {tensor.offset!r:.50}, index {tensor.index!r:.50}"
    size = spec.span * spec.dtype.itemsize
    if tensor.place == "arena":
        return "" if tensor.offset + size <= plan.arena_bytes else "ends behind the arena"
    if tensor.place == "counters":
        return "" if tensor.offset + size <= 4 * plan.counters else "ends behind the counters"
    if tensor.place == "constant":
        return "" if tensor.index < len(plan.constants) else f"no constant {tensor.index}"
    if tensor.place in ("input", "output"):
        whole = plan.inputs if tensor.place == "input" else plan.outputs
        if tensor.index >= len(whole):
            return f"no {tensor.place} {tensor.index}"
        return "" if tensor.offset + spec.span <= whole[tensor.index].span else f"ends behind {tensor.place} {tensor.index}"
    return ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_index(value: Any, count: int) -> bool:
    return _is_count(value) and value < count
