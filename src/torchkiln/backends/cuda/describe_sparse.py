"""describe_sparse: for each layer of a plan whether a 2:4 kernel runs it, and the time beside the best dense one, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...dtypes import dtype_name
from ...sparsity.pattern import is_two_of_four
from .mark_two_of_four import weight_of
from .tactics.sparse import CuSparseLt
from .timing_cache import Entry, TimingCache
from .trace import Operation, Trace
from .tuner import Choice, problem_keys


def describe_sparse(traced: Trace, choices: Sequence[Choice], level: int, cache: TimingCache, device: torch.device) -> list[dict[str, Any]]:
    """A JSON object for each linear layer and convolution with a constant weight, in order.

    Keys: ``label`` (the operation's), ``weight`` (the constant's name), ``outcome`` ("used", "slower", "not supported", "failed" or "no pattern"),
    ``tactic`` (what runs it), ``sparse_us`` and ``dense_us`` (the tuner's medians of the fastest of each kind that is right, or None) and
    ``reason``.
    """
    found = []
    for operation, choice, name in zip(traced.operations, choices, problem_keys(traced.operations, level, device), strict=True):
        weight = weight_of(operation, traced)
        if weight is not None:
            found.append(_describe(operation, choice, cache.get(name), is_two_of_four(weight)))
    return found


def _describe(operation: Operation, choice: Choice, entry: Entry | None, has_pattern: bool) -> dict[str, Any]:
    weight = operation.inputs[1]
    assert weight is not None
    outcome, reason = _outcome(operation, choice, entry, has_pattern)
    return {
        "label": operation.label,
        "weight": weight.storage.name,
        "outcome": outcome,
        "tactic": choice.option.tactic,
        "sparse_us": _best(entry, is_sparse=True),
        "dense_us": _best(entry, is_sparse=False),
        "reason": reason,
    }


def _outcome(operation: Operation, choice: Choice, entry: Entry | None, has_pattern: bool) -> tuple[str, str]:
    tactic, problem = CuSparseLt(), operation.problem
    weight = problem.inputs[1]
    assert weight is not None
    if not has_pattern:
        return "no pattern", "its weight is not 2:4: torchkiln.sparsify prunes it"
    if not weight.dtype.is_floating_point:
        return "not supported", f"its weight is {dtype_name(weight.dtype)}: the 2:4 kernels are of fp16 and bf16"
    if choice.option.tactic == tactic.name:
        return "used", ""
    if problem.op not in tactic.ops:
        return "not supported", f"it is fused into {problem.op}, which has no 2:4 kernel"
    why = tactic.reject(problem)
    if why:
        return "not supported", why
    sparse_us, dense_us = _best(entry, is_sparse=True), _best(entry, is_sparse=False)
    if sparse_us is None:
        errors = [str(why) for name, _, us, why in entry.candidates if name == tactic.name and us is None] if entry is not None else []
        return "failed", errors[0] if errors else "it was not measured"
    is_behind = dense_us is not None and sparse_us >= dense_us
    return "slower", "" if is_behind else "by itself it is faster; a library's kernel costs more in a plan, where the kernel before cannot overlap it"


def _best(entry: Entry | None, *, is_sparse: bool) -> float | None:
    """Of the candidates that were measured to be right, dense or sparse, the least microseconds."""
    if entry is None:
        return None
    times = [us for name, _, us, _ in entry.candidates if us is not None and (name == CuSparseLt.name) == is_sparse]
    return min(times, default=None)
