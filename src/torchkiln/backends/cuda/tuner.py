"""tuner: the fastest correct option for each operation, measured on this GPU or remembered from before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ...errors import BuildFailed
from ...log import REJECTS, STEPS, log
from ...progress import progress
from .compile_kernel import Compiled
from .mark_two_of_four import TWO_OF_FOUR
from .measure import Job
from .recipe import Kernel, Launch, TorchCall
from .tactics.registry import TORCH, Option, option_of, options_of
from .timing_cache import Entry, TimingCache, environment, key
from .trace import Operation
from .worker_pool import WorkerPool, compiled_of

DEFAULT_LEVEL = 3
#: Microseconds that a kernel of a library costs in a plan besides its own: the next kernel cannot be scheduled before it has ended.
LIBRARY_US = 0.7


@dataclass
class Choice:
    """What runs an operation.

    Attributes:
        median_us: as measured inside a CUDA graph; None when torch runs it and it could not be measured.
        rejects: why other tactics cannot run it, and what was measured wrong.
    """

    option: Option
    median_us: float | None
    codes: dict[Kernel, Compiled]
    rejects: list[str] = field(default_factory=list)


def tune(operations: Sequence[Operation], device: torch.device, level: int, cache: TimingCache, pool: WorkerPool) -> list[Choice]:
    """A Choice for each operation. Equal problems are measured once; the cache's winners are not measured again.

    Raises BuildFailed when nothing runs an operation correctly.
    """
    keys = problem_keys(operations, level, device)
    unique = dict(zip(keys, operations, strict=True))
    chosen: dict[str, Choice] = {}
    open_problems: dict[str, tuple[list[Option], list[str]]] = {}
    for name, operation in unique.items():
        remembered = _remembered(cache.get(name), operation)
        if remembered is not None:
            chosen[name] = remembered
            _start([remembered.option], pool)
        else:
            open_problems[name] = options_of(operation, level)
            _start(open_problems[name][0], pool)
    for done, (name, (options, rejects)) in enumerate(open_problems.items()):
        progress("tune", done, len(open_problems))
        chosen[name] = _tune_one(unique[name], options, rejects, name, cache, pool)
    progress("tune", len(open_problems), len(open_problems))
    for name, choice in chosen.items():
        if not choice.codes:
            choice.codes, why = codes_of(choice.option, pool)
            if why:
                raise BuildFailed(f"{unique[name].label}: {choice.option.tactic}: {why}")
    return [chosen[name] for name in keys]


def problem_keys(operations: Sequence[Operation], level: int, device: torch.device) -> list[str]:
    """The cache's key of each operation's problem."""
    where = environment(device)
    return [key(f"{operation.problem.key()} level {level}", where) for operation in operations]


def _remembered(entry: Entry | None, operation: Operation) -> Choice | None:
    if entry is None:
        return None
    try:
        option = option_of(operation, entry.tactic, dict(entry.config))
    except KeyError:
        return None
    return Choice(option, entry.median_us, {})


def _start(options: Sequence[Option], pool: WorkerPool) -> None:
    for option in options:
        for launch in option.recipe.launches:
            if isinstance(launch, Launch):
                pool.compile(launch.kernel)


def codes_of(option: Option, pool: WorkerPool) -> tuple[dict[Kernel, Compiled], str]:
    """The machine code of an option's kernels; and why there is none, or ""."""
    kernels = [launch.kernel for launch in option.recipe.launches if isinstance(launch, Launch)]
    return compiled_of([(kernel, pool.compile(kernel)) for kernel in kernels])


def _tune_one(operation: Operation, options: list[Option], rejects: list[str], name: str, cache: TimingCache, pool: WorkerPool) -> Choice:
    problem = operation.problem
    if not any(launch for option in options for launch in option.recipe.launches):
        return Choice(options[0], 0.0, {}, rejects)  # an empty tensor: nothing to launch
    ready: list[tuple[Option, dict[Kernel, Compiled]]] = []
    tried: list[tuple[Option, float | None, str]] = []
    for option in options:
        codes, why = codes_of(option, pool)
        if why:
            tried.append((option, None, why))
        else:
            ready.append((option, codes))
    if ready:
        together = {kernel: code for _, codes in ready for kernel, code in codes.items()}
        recipes, is_sparse = tuple(o.recipe for o, _ in ready), bool(problem.attributes.get(TWO_OF_FOUR))
        job = Job(problem.inputs, problem.outputs, problem.math, operation.reference, recipes, together, is_sparse)
        for (option, _), outcome in zip(ready, pool.measure(job), strict=True):
            tried.append((option, outcome.median_us, outcome.why))
    for option, median_us, why in tried:
        log(REJECTS, "tune %s: %s %s: %s", operation.label, option.tactic, option.config, f"{median_us:.2f} us" if median_us is not None else why)
    right = [(option, median_us) for option, median_us, _ in tried if median_us is not None]
    wrong = [f"{option.tactic} {option.config}: {why}" for option, median_us, why in tried if median_us is None]
    if not right:
        if all(option.tactic == TORCH for option in options):
            # torch is its own reference; it may still refuse to be measured (an operator that cannot be captured).
            return Choice(options[0], None, {}, rejects + wrong)
        return Choice(Option(TORCH, {}, operation.reference), None, {}, rejects + wrong)
    best, median_us = min(right, key=lambda pair: pair[1] + LIBRARY_US * sum(isinstance(call, TorchCall) for call in pair[0].recipe.launches))
    log(STEPS, "tune %s: %s %s: %.2f us of %d tried", operation.label, best.tactic, best.config, median_us, len(tried))
    cache.put(name, Entry(best.tactic, best.config, median_us, [[o.tactic, o.config, us, why] for o, us, why in tried]))
    codes = next(codes for option, codes in ready if option is best)
    return Choice(best, median_us, codes, rejects + wrong)
