"""search: the fastest engine within a budget, over the precisions of all layers.

First every engine of one precision is built and measured, as any build would do; one of float32 is always among them. Where a narrower one is faster
than the best within the budget but outside of it, its layers are widened, those first that remove the most error for the least time, until it is
inside. How many that takes is found by bisection, with real engines; a simulation in PyTorch says where to begin.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..backends.contract import Candidate
from ..dtypes import precision_name
from ..engine.frontier import Frontier, FrontierPoint, LayerReport
from ..engine.report import CandidateReport, Report
from ..errors import ParityFailed
from ..lower.keep_float32 import shortest_names
from ..progress import progress
from ..race.attempt import Attempt
from ..race.race import Race
from ..settings import CompileSettings
from .assignment import Assignment, Narrowing
from .budget import Budget
from .greedy import Level, total_us, widening_order
from .simulation import Simulation
from .times import torch_shares, unit_times
from .units import Unit, find_units

#: A mixed engine that is predicted to be slower than the best by more than this is not built.
_SLOWER = 1.1
_INT8 = "int8"

#: Makes the race of an assignment's programs; None: of the program as it is, quantized whole.
MakeRace = Callable[[Assignment | None], Race]


@dataclass
class Member:
    """An engine that was built, and what was measured of it."""

    attempt: Attempt
    race: Race
    assignment: Assignment
    levels: tuple[str, ...]
    """The precision of each unit."""
    error: float | None
    accuracy: float | None = None
    within: bool = False

    @property
    def candidate(self) -> Candidate:
        return self.attempt.candidate

    @property
    def is_float32(self) -> bool:
        return self.candidate.precision is torch.float32 and not self.candidate.quantized


class PrecisionSearch:
    """Searches one program for one target.

    Args:
        narrowing: of the lowered program, with the calibrator where there is one.
        settings: the caller's, precision="auto".
        report: filled for the engine that is chosen.
        make_race: makes the race that builds and checks an assignment, or (None) the engines of one precision.
        inputs: the program's input tensors for the simulation: real data where there is some.
    """

    def __init__(self, narrowing: Narrowing, settings: CompileSettings, report: Report, make_race: MakeRace, inputs: Sequence[torch.Tensor]) -> None:
        self._narrowing = narrowing
        self._settings = settings
        self._report = report
        self._make_race = make_race
        self._inputs = inputs
        self._budget = Budget(settings)
        self._members: list[Member] = []
        self._builds_left = settings.max_builds
        self._simulation: Simulation | None = None
        self._shares: list[float] = []
        self._scans: dict[torch.dtype | str, list[float]] = {}
        self._times: dict[str, list[float]] = {}
        self._times_from: dict[str, None] = {}
        layers = narrowing.int8_layers()
        self._int8 = frozenset(layer.name for layer in layers)
        self._units = find_units(narrowing.program.graph_module, layers)

    def run(self, candidates: Sequence[Candidate]) -> Attempt:
        """The fastest engine within the budget; ``candidates`` are those of one precision each, of float32 among them.

        Raises ParityFailed when not even one in float32 is within it, and what the race raises when none can be built.
        """
        self._build_uniform(candidates)
        for member in sorted(self._members, key=lambda member: member.attempt.median_us):
            if member.within or member.is_float32:
                continue
            if member.attempt.median_us >= self._best().attempt.median_us:
                break
            if not self._builds_left:
                self._report.notes.append(f"precision search: ended after max_builds={self._settings.max_builds} engines of mixed precision")
                break
            self._widen(member)
        return self._finish()

    # Engines of one precision

    def _build_uniform(self, candidates: Sequence[Candidate]) -> None:
        race = self._make_race(None)
        built: list[Member] = []
        for done, candidate in enumerate(candidates):
            progress(f"build {candidate}", done, len(candidates))
            attempt = race.attempt(candidate)
            if attempt is not None:
                int8 = self._int8 if candidate.quantized else frozenset()
                narrow = precision_name(candidate.precision)
                levels = tuple(_INT8 if candidate.quantized and unit.int8 else narrow for unit in self._units)
                built.append(Member(attempt, race, Assignment(candidate.precision, frozenset(), int8), levels, attempt.parity.relative_error))
        floats = sorted((member for member in built if member.is_float32), key=lambda member: member.attempt.median_us)
        if not floats:
            raise race.failure()
        for member in (floats[0], *(other for other in built if other is not floats[0])):  # the baseline first
            self._add(member)
        if not any(member.within for member in self._members):
            errors = min(math.inf if member.error is None else member.error for member in self._members)
            raise ParityFailed(
                f"precision='auto': not even float32 is within max_error={self._budget.limit:g}: the smallest relative error of an engine is "
                f"{errors:.3g}. Rounding alone makes 1e-7 to 1e-5: allow more."
            )

    def _add(self, member: Member) -> None:
        member.accuracy = self._budget.accuracy(member.attempt.engine)
        if member.accuracy is not None and not self._members:
            self._budget.baseline = member.accuracy
        member.within = self._budget.admits(member.error, member.accuracy)
        self._members.append(member)

    def _best(self) -> Member:
        return min((member for member in self._members if member.within), key=lambda member: member.attempt.median_us)

    # Engines of mixed precision

    def _widen(self, start: Member) -> None:
        """Bisect along the way from ``start``, which is fast and outside of the budget, to float32."""
        ladders = self._ladders(start)
        path = widening_order(ladders)
        low, high = 0, len(path) - 1
        # How much larger the errors of this backend's engines are than the simulated ones.
        factor = self._factor(start, ladders, path[0], 1.0)
        while high - low > 1 and self._builds_left:
            at = self._next(start, ladders, path, low, high, factor)
            if at is None or total_us(ladders, path[at]) > _SLOWER * self._best().attempt.median_us:
                return
            member = self._build(start, ladders, path[at])
            if member is None:  # the report says why
                low = at
                continue
            if not member.within and member.attempt.median_us > _SLOWER * self._best().attempt.median_us:
                return  # what is inside is slower still
            low, high = (low, at) if member.within else (at, high)
            factor = self._factor(member, ladders, path[at], factor)

    def _next(
        self, start: Member, ladders: Sequence[Sequence[Level]], path: Sequence[tuple[int, ...]], low: int, high: int, factor: float
    ) -> int | None:
        """Which point of the path to build between ``low`` (outside) and ``high`` (inside); None when, by the simulation, none of them is inside."""
        if not self._budget.by_error:
            return (low + high) // 2
        below, above = low, high
        while above - below > 1:
            middle = (below + above) // 2
            progress("precision search: simulate", 0, 0)
            if self._simulated(start, ladders, path[middle]) * factor <= self._budget.limit:
                above = middle
            else:
                below = middle
        if above < high:
            return above
        return None if high < len(path) - 1 else (low + high) // 2

    def _simulated(self, start: Member, ladders: Sequence[Sequence[Level]], state: tuple[int, ...]) -> float:
        assert self._simulation is not None
        return self._simulation.error(self._assignment(start, ladders, state))

    def _factor(self, member: Member, ladders: Sequence[Sequence[Level]], state: tuple[int, ...], before: float) -> float:
        if not self._budget.by_error or member.error is None:
            return before
        simulated = self._simulated(member, ladders, state)
        factor = member.error / simulated if simulated > 0 else math.inf
        return factor if math.isfinite(factor) and factor > 0 else before

    def _assignment(self, start: Member, ladders: Sequence[Sequence[Level]], state: Sequence[int]) -> Assignment:
        kept: set[str] = set()
        int8: set[str] = set()
        for unit, levels, at in zip(self._units, ladders, state, strict=True):
            if levels[at].name == _INT8:
                int8.update(unit.int8)
            elif levels[at].name == "fp32" and start.candidate.precision is not torch.float32:
                kept.update(unit.nodes)
        return Assignment(start.candidate.precision, frozenset(kept), frozenset(int8))

    def _build(self, start: Member, ladders: Sequence[Sequence[Level]], state: tuple[int, ...]) -> Member | None:
        """The engine with these levels, built unless it was on the way from another start; None when it cannot be built."""
        assignment = self._assignment(start, ladders, state)
        for member in self._members:
            if (member.candidate.backend, member.assignment) == (start.candidate.backend, assignment):
                return member
        done = self._settings.max_builds - self._builds_left
        progress(f"precision search: build {start.candidate}", done, self._settings.max_builds)
        self._builds_left -= 1
        names = tuple(levels[at].name for levels, at in zip(ladders, state, strict=True))
        counts = Counter(names)
        layers = " + ".join(f"{count} {name}" for name, count in counts.items())
        candidate = replace(start.candidate, quantized=bool(assignment.int8), options={"layers": layers})
        race = self._make_race(assignment)
        attempt = race.attempt(candidate)
        if attempt is None:
            return None
        member = Member(attempt, race, assignment, names, attempt.parity.relative_error)
        self._add(member)
        return member

    # What each unit costs

    def _ladders(self, start: Member) -> list[list[Level]]:
        """The levels of each unit, narrowest first, for mixtures of ``start``'s kind."""
        if self._simulation is None:
            progress("precision search: float32 in PyTorch", 0, 0)
            self._simulation = Simulation(self._narrowing, self._inputs)
            self._shares = torch_shares(self._narrowing.program.graph_module, self._inputs, self._units)
        precision = start.candidate.precision
        low = precision_name(precision)
        times = {"fp32": self._unit_times(torch.float32, start, quantized=False)}
        if precision is not torch.float32:
            times[low] = self._unit_times(precision, start, quantized=False)
        if start.candidate.quantized:
            times[_INT8] = self._unit_times(precision, start, quantized=True)
        self._times |= times
        int8 = self._scan(_INT8) if start.candidate.quantized else []
        narrow = self._scan(precision) if precision is not torch.float32 else []
        ladders = []
        for index, unit in enumerate(self._units):
            levels = [Level("fp32", 0.0, times["fp32"][index])]
            if narrow:
                levels.insert(0, Level(low, narrow[index], times[low][index]))
            if start.candidate.quantized and unit.int8:
                levels.insert(0, Level(_INT8, int8[index], times[_INT8][index]))
            ladders.append(levels)
        return ladders

    def _unit_times(self, precision: torch.dtype, start: Member, *, quantized: bool) -> list[float]:
        """By the engine of one precision: of the same backend where there is one, else the fastest, else ``start`` itself."""
        alike = [m for m in self._members if not m.candidate.options and (m.candidate.precision, m.candidate.quantized) == (precision, quantized)]
        own = [m for m in alike if m.candidate.backend == start.candidate.backend]
        member = min(own or alike or [start], key=lambda m: m.attempt.median_us)
        times, source = unit_times(member.attempt, self._units, self._shares, self._settings.num_threads)
        self._times_from[source] = None
        return times

    def _scan(self, precision: torch.dtype | str) -> list[float]:
        """The error of the outputs with only one unit narrow, for each; 0 for one without layers for int8."""
        if precision not in self._scans:
            assert self._simulation is not None
            name = precision if isinstance(precision, str) else precision_name(precision)
            errors = []
            for done, unit in enumerate(self._units):
                progress(f"precision search: layers in {name}", done, len(self._units))
                errors.append(self._simulation.error(self._alone(unit, precision)) if precision != _INT8 or unit.int8 else 0.0)
            self._scans[precision] = errors
        return self._scans[precision]

    def _alone(self, unit: Unit, precision: torch.dtype | str) -> Assignment:
        if isinstance(precision, str):
            return Assignment(torch.float32, frozenset(), frozenset(unit.int8))
        return Assignment(precision, frozenset(name for other in self._units if other is not unit for name in other.nodes))

    # The result

    def _finish(self) -> Attempt:
        within = [member for member in self._members if member.within]
        attempts = [member.attempt for member in within]
        chosen = within[0].race.choose(attempts)
        best = next(member for member in within if member.attempt is chosen)
        best.race.describe(chosen, attempts)
        report = self._report
        for member in self._members:
            if not member.within:
                found = f"relative error {member.error:.3g}" if self._budget.by_error else f"accuracy {member.accuracy:.6g}"
                limit = f"{self._budget.limit:g}" if self._budget.by_error else f"{self._budget.baseline:.6g} - {self._budget.limit:g}"
                name, attempt, reason = str(member.candidate), member.attempt, f"{found}, asked {limit}"
                report.candidates.append(CandidateReport(name, "parity", attempt.build_s, attempt.median_us / 1e3, member.error, reason))
        if self._budget.by_error or self._settings.verify is True:
            report.parity.tolerance = self._budget.limit if self._budget.by_error else None
        report.frontier = self._frontier(best)
        report.settings = self._settings_of(best, report.frontier).as_json()
        return chosen

    def _frontier(self, best: Member) -> Frontier:
        points = [self._point(member, best) for member in self._members]
        low = precision_name(best.candidate.precision)
        nodes = {node.name: node for node in self._narrowing.program.graph_module.graph.nodes}
        in_units = [nodes[name] for unit in self._units for name in unit.nodes]
        kept = [node for node in in_units if node.name in best.assignment.kept]
        scans = {precision if isinstance(precision, str) else precision_name(precision): errors for precision, errors in self._scans.items()}
        return Frontier(
            budget=self._budget.name,
            limit=self._budget.limit,
            points=points,
            layers=[
                LayerReport(
                    unit.name,
                    best.levels[index],
                    len(unit.nodes),
                    {name: errors[index] for name, errors in scans.items() if name != _INT8 or unit.int8},
                    {name: times[index] for name, times in self._times.items() if name != _INT8 or unit.int8},
                )
                for index, unit in enumerate(self._units)
            ],
            times_from="; ".join(self._times_from),
            enabled_precisions=[low, *([_INT8] if best.assignment.int8 else [])],
            keep_float32=sorted({*shortest_names(kept, in_units), *self._settings.keep_float32}) if not best.is_float32 else [],
            skip=sorted(self._int8 - best.assignment.int8) if best.assignment.int8 else [],
        )

    def _point(self, member: Member, best: Member) -> FrontierPoint:
        def worse(one: Member) -> float:
            return (one.error if one.error is not None else math.inf) if self._budget.by_error else -(one.accuracy or 0.0)

        time_us, error = member.attempt.median_us, worse(member)
        others = [other for other in self._members if other is not member]
        beaten = any(other.attempt.median_us <= time_us and worse(other) <= error for other in others)
        return FrontierPoint(
            name=f"{member.candidate.backend} {member.candidate.precision_text}",
            layers=dict(Counter(member.levels)),
            median_ms=member.attempt.median_us / 1e3,
            relative_error=member.error,
            accuracy=member.accuracy,
            within=member.within,
            is_best=not beaten,
            is_kept=member is best,
        )

    def _settings_of(self, best: Member, frontier: Frontier) -> CompileSettings:
        """The settings that make the engine without a search."""
        precisions = {best.candidate.precision, *([torch.int8] if best.assignment.int8 else [])}
        return self._settings.without_search(
            enabled_precisions=frozenset(precisions),
            keep_float32=frozenset(frontier.keep_float32),
            calibrator=self._settings.calibrator if best.assignment.int8 else None,
            verify=self._budget.limit if self._budget.by_error else self._settings.verify,
        )
