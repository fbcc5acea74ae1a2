"""attempt: one candidate built into an engine: partition, build every segment, send slow segments back to PyTorch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch
from torch.fx import Node

from ..backends.contract import Candidate, Reject, Runner
from ..backends.registry import get_backend
from ..engine.artifact import Artifact
from ..engine.contents import EngineContents, EngineSegment
from ..engine.engine import Engine
from ..engine.report import ParityReport, RejectReport, Report, SegmentReport
from ..errors import BuildFailed, CompilerBug
from ..inputs import resolve_profiles
from ..log import REJECTS, STEPS, log
from ..partition.extract import Step, extract
from ..partition.partition import TORCH, Partition, partition
from ..partition.support import is_compute, location
from ..program import Program
from ..quantized_ops import has_quantized_ops
from ..settings import CompileSettings, op_name
from .assemble import assemble
from .timing import race_us

#: A segment goes back to PyTorch when it is slower by more than this: less is noise.
SLOWER_RATIO = 1.05
SEGMENT_BUDGET_S = 0.2


@dataclass
class Attempt:
    """A candidate as built. ``contents.report`` is filled when the candidate is chosen."""

    candidate: Candidate
    contents: EngineContents
    engine: Engine
    steps: list[Step]
    rejects: dict[Node, Reject]
    segment_reports: list[SegmentReport]
    build_s: float
    parity: ParityReport = field(default_factory=lambda: ParityReport(verified=False))
    median_us: float = float("inf")


class NothingToBuild(Exception):
    """The backend takes no part of the model (an outcome, reported as such)."""

    def __init__(self, rejects: dict[Node, Reject]) -> None:
        super().__init__("takes no segment of the model")
        self.rejects = rejects


class Builder:
    """Builds candidates of one program.

    ``device`` is where the program's tensors are and builds are run: the target's device, or the CPU for targets that this machine lacks.
    """

    def __init__(self, program: Program, settings: CompileSettings, device: torch.device, report: Report) -> None:
        self._program = program
        self._settings = settings
        self._device = device
        self._report = report
        self._profiles = resolve_profiles(settings.profiles, program.inputs)

    def for_program(self, program: Program) -> Builder:
        """The same builder for another program (one with more outputs, to find a fault)."""
        return Builder(program, self._settings, self._device, self._report)

    def plan(self, candidate: Candidate, demoted: dict[Node, Reject] | None = None) -> tuple[Partition, list[Step]]:
        """The partition, and its parts as segments that the backend has seen whole and refuses nothing of."""
        backend = get_backend(candidate.backend)
        refused = dict(demoted or {})
        while True:
            plan = partition(self._program.graph_module, backend, self._settings, refused)
            steps = extract(self._program.graph_module, plan, self._program.inputs, self._program.example_inputs, self._profiles)
            found = self._examine(steps, candidate)
            if not found:
                return plan, steps
            refused |= found

    def _examine(self, steps: list[Step], candidate: Candidate) -> dict[Node, Reject]:
        """What the backend refuses of its segments, as nodes of the program's graph."""
        found: dict[Node, Reject] = {}
        for step in steps:
            if step.backend == TORCH:
                continue
            by_name = {node.name: node for node in step.nodes}
            for node, reject in get_backend(step.backend).examine(step.segment, candidate, self._settings).items():
                found[by_name[node.name]] = reject
                log(REJECTS, "%s: %s: %s: %s", candidate, step.segment.name, node.name, reject.reason)
        return found

    def build(self, candidate: Candidate, *, demote_slow: bool) -> Attempt:
        """Build ``candidate``. Raises BuildFailed, NothingToBuild, and UserError where full compilation is required and impossible."""
        start = time.perf_counter()
        built: dict[frozenset[Node], tuple[str, Artifact]] = {}
        demoted: dict[Node, Reject] = {}
        while True:
            plan, steps = self.plan(candidate, demoted)
            if candidate.backend != TORCH and not plan.backend_parts:
                raise NothingToBuild(plan.rejects)
            if candidate.backend != TORCH and self._settings.require_full_compilation and any(p.backend == TORCH for p in plan.parts):
                raise NothingToBuild(plan.rejects)
            artifacts = [self._build_step(step, candidate, built) for step in steps]
            contents = assemble(self._program, steps, artifacts, candidate.targets, self._report)
            engine = self._load(contents, candidate)
            reports = [
                SegmentReport(step.segment.name, step.backend, precision, step.segment.op_count)
                for step, (precision, _) in zip(steps, artifacts, strict=True)
            ]
            slow = self._slow_steps(steps, engine, reports) if len(steps) > 1 and candidate.is_here else {}
            if not slow or not demote_slow or self._settings.require_full_compilation:
                return Attempt(candidate, contents, engine, steps, plan.rejects, reports, time.perf_counter() - start)
            demoted.update(slow)

    def _load(self, contents: EngineContents, candidate: Candidate) -> Engine:
        """The engine, to be run here: where its target is not in this machine, each segment is run by what stands in for it."""
        if candidate.is_here:
            return Engine(contents, self._device, self._settings.num_threads)
        return Engine(contents, self._device, runners=[self._stand_in(segment) for segment in contents.segments])

    def _stand_in(self, segment: EngineSegment) -> Runner:
        if segment.backend == TORCH:
            return get_backend(TORCH).load(segment.artifact, self._device, self._settings.num_threads)
        if segment.artifact.stand_in is None:
            raise CompilerBug(f"{segment.name}: {segment.backend} built it for a device that is not here, and gave nothing to check it by")
        return segment.artifact.stand_in

    def _build_step(self, step: Step, candidate: Candidate, built: dict[frozenset[Node], tuple[str, Artifact]]) -> tuple[str, Artifact]:
        """The step's precision, as reports have it, and its artifact. A segment without quantize/dequantize pairs is not int8."""
        key = frozenset(step.nodes)
        if key not in built:
            chosen = candidate if step.backend != TORCH else Candidate(TORCH, torch.float32, targets=candidate.targets)
            chosen = replace(chosen, quantized=candidate.quantized and has_quantized_ops(step.segment.graph_module.graph))
            began = time.perf_counter()
            artifact = get_backend(step.backend).build(step.segment, chosen, self._settings)
            log(STEPS, "%s: built %s (%d operators) in %.2f s", candidate, step.segment.name, step.segment.op_count, time.perf_counter() - began)
            built[key] = (chosen.precision_text, artifact)
        return built[key]

    def _slow_steps(self, steps: list[Step], engine: Engine, reports: list[SegmentReport]) -> dict[Node, Reject]:
        """Time each segment that a backend built against PyTorch; the nodes of those that lose."""
        slow: dict[Node, Reject] = {}
        torch_backend = get_backend(TORCH)
        for step, runner, report in zip(steps, engine.runners, reports, strict=True):
            if step.backend == TORCH:
                continue
            inputs = step.segment.example_inputs
            eager = torch_backend.load(
                torch_backend.build(step.segment, Candidate(TORCH, torch.float32), self._settings), self._device, self._settings.num_threads
            )
            own, theirs = race_us([lambda r=runner, i=inputs: r(i), lambda i=inputs, e=eager: e(i)], self._device, SEGMENT_BUDGET_S)  # type: ignore[misc]
            report.time_us, report.torch_time_us = own, theirs
            if own > theirs * SLOWER_RATIO:
                report.note = f"slower than PyTorch: {own:.0f} us against {theirs:.0f} us"
                log(REJECTS, "%s (%s): %s", step.segment.name, step.backend, report.note)
                slow.update({n: Reject(op_name(n.target), f"its segment is {report.note}") for n in step.nodes if is_compute(n)})
        return slow


def reject_reports(rejects: dict[Node, Reject], backend: str) -> list[RejectReport]:
    """The refused nodes for the report, with the model's source line where torch.export kept it."""
    return [RejectReport(reject.subject, location(node), backend, reject.reason) for node, reject in rejects.items()]


def required(rejects: dict[Node, Reject]) -> BuildFailed:
    """The error for require_full_compilation."""
    listed = "\n".join(f"  {location(n)}: {r.subject}: {r.reason}" for n, r in list(rejects.items())[:20])
    more = f"\n  ... and {len(rejects) - 20} more" if len(rejects) > 20 else ""
    return BuildFailed(
        f"require_full_compilation: {len(rejects)} operators would stay in PyTorch:\n{listed}{more}\nAllow them there, or change the model."
    )
