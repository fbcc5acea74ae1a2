"""refine_choices: runners-up tried inside the whole plan, and kept where the plan is faster with them.

By itself a kernel finds its instructions in the cache and its successor is a copy of it. In a plan others come before and after it, and what is
fastest there may be another: with fewer instructions, or able to overlap its neighbours.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...engine.graph_capture import CaptureFailed
from ...errors import BuildFailed
from ...log import REJECTS, STEPS, log
from ...progress import progress
from .assemble_plan import Codes, Constants, assemble_plan
from .recipe import Config
from .tactics.registry import TORCH, option_of
from .time_plans import time_plans
from .timing_cache import Entry, TimingCache, environment, key
from .trace import Operation, Trace
from .tuner import LIBRARY_US, Choice, codes_of, problem_keys
from .worker_pool import WorkerPool

TACTIC = "refined"
#: Optimization levels that refine, with the seconds they may take.
LIMIT_S = {3: 15.0, 4: 30.0, 5: 60.0}
#: How many runners-up of a problem are tried, and how much slower by themselves, as a share and in microseconds.
RUNNERS_UP = 5
SLOWER, SLOWER_US = 0.25, 0.3
#: A plan is faster when it is by this share in the median, and in so many of the rounds.
LEAST_GAIN, ROUNDS, MOST_ROUNDS = 0.001, 15, 12
#: A step that cannot be captured, or memory that is short.
_FAILURES = (CaptureFailed, BuildFailed, RuntimeError)
#: A trial that was slower in each of the first rounds is over.
LOST_ROUNDS = 4


@dataclass(frozen=True)
class _Group:
    """The operations of one problem, and what else was measured to run it.

    Attributes:
        places: their numbers among the operations.
        others: (tactic, config, median in us), the fastest first.
    """

    key: str
    places: tuple[int, ...]
    others: tuple[tuple[str, Config, float], ...]


def refine_choices(traced: Trace, choices: Sequence[Choice], level: int, cache: TimingCache, pool: WorkerPool, device: torch.device) -> list[Choice]:
    """The choices, some replaced by runners-up with which the whole plan on one stream was measured to be faster, now or before (``cache``).

    A plan that cannot be measured keeps its choices.
    """
    current = list(choices)
    if level not in LIMIT_S:
        return current
    groups = _groups(traced.operations, current, level, cache, device)
    if not groups:
        return current
    name = key(_digest(traced.operations, groups, level), environment(device))
    remembered = cache.get(name)
    try:
        if remembered is None:
            best, times_us, is_complete = _search(traced, current, groups, LIMIT_S[level], pool, device)
            if is_complete:  # the rest may be tried next time
                cache.put(name, Entry(TACTIC, {key: list(other[:2]) for key, other in best.items()}, times_us[1], [[TACTIC, {}, times_us[0], ""]]))
        else:
            best = _from_entry(remembered, groups)
    except _FAILURES as error:
        log(REJECTS, "cuda: choices cannot be tried in the plan: %s", _settle(error, device))
        return current
    for group in groups:
        if group.key in best:
            _put(current, group, traced.operations, best[group.key], pool)
    return current


def _settle(error: Exception, device: torch.device) -> str:
    """The error in a line, once the device is done. Raises again when the error is one that the process does not survive."""
    if torch.cuda.is_available():
        torch.cuda.synchronize(device)
    return str(error).strip().splitlines()[0] if str(error) else type(error).__name__


def _groups(operations: Sequence[Operation], choices: Sequence[Choice], level: int, cache: TimingCache, device: torch.device) -> list[_Group]:
    """The problems that have runners-up, those that take longest first."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(problem_keys(operations, level, device)):
        places.setdefault(name, []).append(place)
    groups = []
    for name, found in places.items():
        entry, choice = cache.get(name), choices[found[0]]
        if entry is None or choice.median_us is None or choice.option.tactic == TORCH:
            continue
        others = _runners_up(entry, choice)
        if others:
            groups.append(_Group(name, tuple(found), tuple(others)))
    return sorted(groups, key=lambda group: -len(group.places) * (choices[group.places[0]].median_us or 0.0))


def _runners_up(entry: Entry, choice: Choice) -> list[tuple[str, Config, float]]:
    """Of what was measured to be right, the next after what was chosen, and of other tactics the best, as far as they are not much slower."""
    limit = entry.median_us * (1 + SLOWER) + SLOWER_US + LIBRARY_US
    right = sorted(
        ((tactic, dict(config), us) for tactic, config, us, _ in entry.candidates if us is not None and us <= limit), key=lambda one: one[2]
    )
    right = [one for one in right if (one[0], one[1]) != (choice.option.tactic, dict(choice.option.config))]
    seen: set[str] = {choice.option.tactic}
    found = []
    for number, one in enumerate(right):
        if number < RUNNERS_UP or one[0] not in seen:
            found.append(one)
        seen.add(one[0])
    return found


def _search(
    traced: Trace, choices: Sequence[Choice], groups: Sequence[_Group], limit_s: float, pool: WorkerPool, device: torch.device
) -> tuple[dict[str, tuple[str, Config, float]], tuple[float, float], bool]:
    """For problems whose choice another beats: that other; the plan's microseconds with the choices as they were and as they are then; and whether
    there was time for all. Raises what ``time_plans`` raises when already the first trial fails: then it is the plan that cannot be measured."""
    end = time.monotonic() + limit_s
    current, best = list(choices), dict[str, tuple[str, Config, float]]()
    trials = [(group, other) for group in groups for other in group.others]
    times_us: list[float] = []
    is_complete = True
    for number, (group, other) in enumerate(trials):
        progress("refine", number, len(trials))
        if time.monotonic() > end:
            log(STEPS, "cuda: %d of %d runners-up tried in %.0f s", number, len(trials), limit_s)
            is_complete = False
            break
        trial = list(current)
        if not _put(trial, group, traced.operations, other, pool):
            continue
        codes, constants = Codes(), Constants()
        plans = [assemble_plan(traced, these, codes, constants) for these in (current, trial)]
        try:
            now, then = time_plans(plans, codes.held, constants.held, device, ROUNDS, same_results=False, enough=_is_lost)
        except _FAILURES as error:
            if not times_us:
                raise
            log(REJECTS, "refine %s: %s %s: %s", traced.operations[group.places[0]].label, other[0], other[1], _settle(error, device))
            continue
        was, is_now = statistics.median(now), statistics.median(then)
        times_us = times_us or [was]
        if is_faster(then, now):
            label = traced.operations[group.places[0]].label
            log(REJECTS, "refine %s: %s %s: the plan takes %.1f us instead of %.1f", label, other[0], other[1], is_now, was)
            times_us.append(is_now)
            current, best[group.key] = trial, other
    progress("refine", len(trials), len(trials))
    first, last = (times_us[0], times_us[-1]) if times_us else (0.0, 0.0)
    log(STEPS, "cuda: %d of %d choices are others in the plan: %.1f us instead of %.1f", len(best), len(groups), last, first)
    return best, (first, last), is_complete


def is_faster(then: Sequence[float], now: Sequence[float]) -> bool:
    """Whether the times of the rounds ``then`` are less than those of the same rounds ``now``, beyond what chance gives."""
    differences = [b - a for a, b in zip(now, then, strict=True)]
    is_less = statistics.median(differences) < -LEAST_GAIN * statistics.median(now)
    return is_less and sum(difference < 0 for difference in differences) >= MOST_ROUNDS / ROUNDS * len(differences)


def _is_lost(times: Sequence[Sequence[float]]) -> bool:
    """Whether the second plan was slower than the first in every round, of which there are enough."""
    now, then = times
    return len(now) >= LOST_ROUNDS and all(b > a for a, b in zip(now, then, strict=True))


def _put(choices: list[Choice], group: _Group, operations: Sequence[Operation], other: tuple[str, Config, float], pool: WorkerPool) -> bool:
    """Put another choice in the places of a group; False, and nothing done, when it cannot be compiled."""
    tactic, config, median_us = other
    made: list[Choice] = []
    for place in group.places:
        option = option_of(operations[place], tactic, config)
        codes, why = codes_of(option, pool)
        if why:
            return False
        made.append(replace(choices[place], option=option, median_us=median_us, codes=codes))
    for place, choice in zip(group.places, made, strict=True):
        choices[place] = choice
    return True


def _digest(operations: Sequence[Operation], groups: Sequence[_Group], level: int) -> str:
    """The same text for the same problems in the same order, over memory that is shared alike, with the same runners-up."""
    numbers: dict[int, int] = {}
    wiring = [
        [[numbers.setdefault(id(value.storage), len(numbers)), value.offset] if value is not None else None for value in (*op.inputs, *op.outputs)]
        for op in operations
    ]
    data = [[operation.problem.key() for operation in operations], wiring, [[group.places, group.others] for group in groups], level]
    return "refined " + hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _from_entry(entry: Entry, groups: Sequence[_Group]) -> dict[str, tuple[str, Config, float]]:
    """What an entry of the cache says, as far as it is among the runners-up."""
    best = {}
    for group in groups:
        wanted = entry.config.get(group.key)
        found = [other for other in group.others if [other[0], other[1]] == wanted]
        if found:
            best[group.key] = found[0]
    return best
