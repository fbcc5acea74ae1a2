"""race: every candidate in turn, then the finalists against each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..backends.contract import Backend, Candidate, Reject
from ..backends.registry import BACKENDS, get_backend
from ..engine.report import CandidateReport, RejectReport, Report
from ..errors import BackendUnavailable, BuildFailed, MissingPackage, ParityFailed, TargetMismatch
from ..log import SUMMARY, log
from ..partition.partition import TORCH
from ..program import Program
from ..progress import progress
from ..quantize.quantize_program import QuantizedProgram
from ..quantized_ops import INT8
from ..settings import CompileSettings
from ..target import Target
from ..verify.locate_fault import locate_fault
from ..verify.reference import flat_tensors, full_float32
from ..verify.tolerance import WEIGHT_TOLERANCES, precisions_in, tolerance_for
from ..verify.verify import CheckPoint, passed, verify
from .attempt import Attempt, Builder, NothingToBuild, reject_reports, required
from .describe_sparse import describe_sparse
from .timing import race_us
from .weight_notes import weight_notes

QUICK_BUDGET_S = 0.3
FINAL_BUDGET_S = 1.5
FINALIST_RATIO = 1.25
#: A backend whose build takes longer than this is not built again in a wider precision when the narrower one passed.
SLOW_BUILD_S = 4.0
#: The backends that compute a quantized graph in floating point.
_FLOATING = (TORCH, "inductor")


def find_candidates(
    targets: Sequence[Target], settings: CompileSettings, report: Report, quantized: QuantizedProgram | None = None
) -> list[Candidate]:
    """The candidates to build for ``targets`` (one, or GPUs that are not in this machine), narrow precisions first within a backend.

    With a ``quantized`` program there are candidates of it, and of the program as it is for the floating precisions that are enabled. What cannot
    build here goes into the report with its reason. Raises BackendUnavailable when the one backend asked for, or every backend, cannot.
    """
    names = list(BACKENDS) if settings.backend == "auto" else [settings.backend]
    floats = _float_settings(settings)
    found: list[Candidate] = []
    for name in names:
        backend = get_backend(name)
        missing = next((reject for target in targets if (reject := backend.availability(target)) is not None), None)
        if missing is not None:
            if settings.backend != "auto":
                raise BackendUnavailable(f"backend {name!r}: {missing.reason}")
            report.candidates.append(CandidateReport(name, "unavailable", reason=missing.reason))
            continue
        if name == TORCH and settings.require_full_compilation:
            report.candidates.append(CandidateReport(name, "skipped", reason="require_full_compilation leaves nothing to PyTorch"))
            continue
        candidates, rejects = _candidates_for_all(backend, targets, floats)
        report.rejects += [RejectReport(r.subject, "precision", name, r.reason) for r in rejects]
        if not candidates:
            # float32 is wider than anything that was allowed, so it is always a correct way out.
            candidates, _ = _candidates_for_all(backend, targets, replace(floats, enabled_precisions=frozenset({torch.float32})))
            report.notes += [f"{name} computes in fp32: it has none of the enabled precisions here" for _ in candidates[:1]]
        candidates = [replace(c, targets=tuple(targets)) for c in sorted(candidates, key=lambda c: c.precision.itemsize)]
        found += candidates if quantized is None else _with_int8(backend, candidates, settings, report, quantized)
    if not found and all(candidate.status == "unavailable" for candidate in report.candidates):
        reasons = "".join(f"\n  {candidate.name}: {candidate.reason}" for candidate in report.candidates)
        raise BackendUnavailable(f"no backend can build for {', '.join(map(str, targets))} on this machine:{reasons}")
    return found


def check_int8(settings: CompileSettings) -> None:
    """Raises BackendUnavailable when int8, or weights in 8 or 4 bits, are asked of the one backend that has none."""
    if settings.weight_precision is not None and settings.backend != "auto":
        reason = get_backend(settings.backend).no_weight_only
        if reason:
            raise BackendUnavailable(f"backend {settings.backend!r}: weight_precision: {reason}")
    elif torch.int8 in settings.enabled_precisions and settings.backend != "auto":
        reason = get_backend(settings.backend).no_int8
        if reason:
            raise BackendUnavailable(f"backend {settings.backend!r}: int8: {reason}")


def _float_settings(settings: CompileSettings) -> CompileSettings:
    """The settings as a backend reads them: int8 is in the graph, and a backend is asked for what computes all else."""
    if torch.int8 not in settings.enabled_precisions:
        return settings
    floats = settings.enabled_precisions - {torch.int8} or frozenset({torch.float32})
    return replace(settings, enabled_precisions=floats, calibrator=None)


def _with_int8(
    backend: Backend, candidates: list[Candidate], settings: CompileSettings, report: Report, quantized: QuantizedProgram
) -> list[Candidate]:
    """A backend's candidates of the quantized program, and of the program itself for the floating precisions asked for."""
    if quantized.kind != INT8:
        return _with_weights(backend, candidates, settings, report, quantized)
    asked = torch.int8 in settings.enabled_precisions
    if backend.no_int8 and asked:
        report.rejects.append(RejectReport("int8", "precision", backend.name, backend.no_int8))
    int8 = [replace(c, quantized=True) for c in candidates if not backend.no_int8]
    if quantized.is_own:
        return int8 or ([] if asked else candidates)
    floats = candidates if settings.enabled_precisions != {torch.int8} else []
    if backend.name == TORCH and floats and settings.backend == "auto":
        return floats  # PyTorch's int8 is floating arithmetic and more of it: it is there for its numbers
    return int8 + floats


def _with_weights(
    backend: Backend, candidates: list[Candidate], settings: CompileSettings, report: Report, quantized: QuantizedProgram
) -> list[Candidate]:
    """A backend's candidates of a program whose weights alone are quantized; none has floating weights."""
    if not backend.no_weight_only:
        return [replace(c, quantized=True, kind=quantized.kind) for c in candidates]
    if settings.weight_precision is None:
        return candidates
    report.rejects.append(RejectReport(f"{settings.weight_precision} weights", "precision", backend.name, backend.no_weight_only))
    return []


def _candidates_for_all(backend: Backend, targets: Sequence[Target], settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
    """The candidates that every target can compute in, and each refusal once."""
    answers = [backend.candidates(target, settings) for target in targets]
    common = set.intersection(*({c.precision for c in found} for found, _ in answers))
    rejects = {reject: None for _, refused in answers for reject in refused}
    return [c for c in answers[0][0] if c.precision in common], list(rejects)


#: What to do when an int8 engine is too far from the model.
_INT8_HINT = (
    " Data that is like what was calibrated with gives the figure its meaning: pass a batch of it as inputs. Another algorithm, and "
    "QuantizeOptions(skip=...) for the layers at fault, make it smaller."
)


class Race:
    """Builds, checks and times candidates, and keeps the fastest that passes."""

    def __init__(
        self,
        program: Program,
        settings: CompileSettings,
        device: torch.device,
        report: Report,
        points: list[CheckPoint],
        model_precision: torch.dtype,
        quantized: QuantizedProgram | None = None,
        quantized_points: list[CheckPoint] | None = None,
    ) -> None:
        self._builders = {False: Builder(program, settings, device, report)}
        self._programs = {False: program}
        self._points = {False: points, True: quantized_points or points}
        if quantized is not None:
            self._programs[True] = quantized.program
            self._builders[True] = Builder(quantized.program, settings, device, report)
        self._quantized = quantized
        self._settings = settings
        self._device = device
        self._report = report
        self._model_precision = model_precision
        self._arguments = points[0].arguments
        self._failures: list[Exception] = []
        self._breaches: list[tuple[Candidate, str, float]] = []
        self._rounded_points: list[CheckPoint] | None = None

    def run(self, candidates: list[Candidate]) -> Attempt:
        """The fastest candidate that passes. Raises ParityFailed, BuildFailed (or what the only candidate raised) when none is left."""
        attempts = self._build_all(candidates)
        if not attempts:
            raise self.failure()
        best = self.choose(attempts)
        self.describe(best, attempts)
        return best

    def _build_all(self, candidates: list[Candidate]) -> list[Attempt]:
        attempts: list[Attempt] = []
        slow_builders: set[tuple[str, bool]] = set()
        for done, candidate in enumerate(candidates):
            progress(f"build {candidate}", done, len(candidates))
            if (candidate.backend, candidate.quantized) in slow_builders:
                self._note(candidate, "skipped", f"{candidate.backend} passed in a narrower precision, and building it again takes long")
                continue
            attempt = self.attempt(candidate)
            if attempt is None:
                continue
            attempts.append(attempt)
            if not candidate.is_here:
                # Nothing can be timed. A narrower precision is faster on any GPU.
                for other in candidates[done + 1 :]:
                    self._note(other, "skipped", f"{candidate} passed, and without the GPU nothing can be timed")
                break
            if attempt.build_s > SLOW_BUILD_S:
                slow_builders.add((candidate.backend, candidate.quantized))
        progress("build", len(candidates), len(candidates))
        return attempts

    def attempt(self, candidate: Candidate) -> Attempt | None:
        """Build, check and time one candidate; None (with the reason in the report) when it is out."""
        start = time.perf_counter()
        try:
            attempt = self._builders[candidate.quantized].build(candidate, demote_slow=self._settings.backend == "auto")
        except NothingToBuild as nothing:
            if self._settings.require_full_compilation:
                self._failures.append(required(nothing.rejects))
                self._note(candidate, "failed", f"{len(nothing.rejects)} operators would stay in PyTorch")
            else:
                self._report.rejects += reject_reports(nothing.rejects, candidate.backend)
                self._failures.append(BuildFailed(f"{candidate}: {nothing}"))
                slow = sum("slower than PyTorch" in r.reason for r in nothing.rejects.values())
                self._note(candidate, "failed", f"{nothing}: {slow} operators in segments slower than PyTorch" if slow else str(nothing))
            return None
        except (BuildFailed, TargetMismatch, MissingPackage) as error:
            self._failures.append(error)
            self._note(candidate, "failed", str(error).splitlines()[0], build_s=time.perf_counter() - start)
            return None
        is_same_graph = self._quantized is not None and self._quantized.checks_itself and (candidate.quantized or self._quantized.is_own)
        int8 = [torch.int8] if candidate.quantized and candidate.kind == INT8 and not is_same_graph else []
        precisions = precisions_in([candidate.precision, *int8], self._model_precision, self._settings.output_dtype)
        kind = candidate.kind if candidate.quantized and not is_same_graph else ""
        tolerance = tolerance_for(self._settings.verify, precisions, self._device, checks_itself=is_same_graph, kind=kind)
        try:
            if tolerance is not None:
                attempt.parity = verify(attempt.engine, self._points[candidate.quantized], self._settings.verify_dtype, tolerance)
                if not passed(attempt.parity):
                    self._parity_breach(attempt)
                    return None
                if kind in WEIGHT_TOLERANCES:
                    # The tolerance of rounded weights is wide: what the backend computes with them is checked by itself.
                    may_round = torch.int8 in self._settings.enabled_precisions
                    own = tolerance_for(True, precisions, self._device, checks_itself=may_round)
                    found = verify(attempt.engine, self._weight_points(), self._settings.verify_dtype, own or 0.0)
                    if not passed(found):
                        attempt.parity = found
                        self._parity_breach(attempt, "from the graph with these weights in PyTorch: ")
                        return None
            if candidate.is_here:
                (attempt.median_us,) = race_us([self._call(attempt)], self._device, QUICK_BUDGET_S)
        except RuntimeError as error:  # what libraries raise when an engine that was built cannot run
            self._failures.append(BuildFailed(f"{candidate}: built, but fails when called: {error}"))
            self._note(candidate, "failed", f"built, but fails when called: {str(error).splitlines()[0]}", build_s=attempt.build_s)
            return None
        if not candidate.is_here:
            log(SUMMARY, "%s: built in %.1f s", candidate, attempt.build_s)
            return attempt
        log(SUMMARY, "%s: %.3f ms, built in %.1f s", candidate, attempt.median_us / 1e3, attempt.build_s)
        return attempt

    def _call(self, attempt: Attempt) -> Callable[[], object]:
        engine, args, kwargs = attempt.engine, self._arguments.args, self._arguments.kwargs
        return lambda: engine(*args, **kwargs)

    def _weight_points(self) -> list[CheckPoint]:
        """The check points with what the graph with rounded weights answers in PyTorch."""
        if self._rounded_points is None:
            run = self._programs[True].graph_module
            with torch.inference_mode(), full_float32():
                answers = [flat_tensors(run(*point.arguments.tensors)) for point in self._points[True]]
            self._rounded_points = [CheckPoint(p.name, p.arguments, a) for p, a in zip(self._points[True], answers, strict=True)]
        return self._rounded_points

    def _parity_breach(self, attempt: Attempt, what: str = "") -> None:
        parity, candidate = attempt.parity, attempt.candidate
        figures = (
            f"{what}relative error {parity.relative_error:.3g} (tolerance {parity.tolerance:.3g} for {candidate.precision_text}), "
            f"max abs error {parity.max_abs_error:.3g}, cosine {parity.cosine:.6g}"
        )
        self._breaches.append((candidate, figures, parity.tolerance or 0.0))
        self._note(candidate, "parity", figures, build_s=attempt.build_s, relative_error=parity.relative_error)

    def choose(self, attempts: list[Attempt]) -> Attempt:
        """The fastest. Those within reach of it are timed again, longer and in turns."""
        if len(attempts) == 1:
            return attempts[0]
        lead = min(a.median_us for a in attempts)
        finalists = [a for a in attempts if a.median_us <= lead * FINALIST_RATIO]
        if len(finalists) > 1:
            progress("race finalists", 0, 0)
            for attempt, median in zip(finalists, race_us([self._call(a) for a in finalists], self._device, FINAL_BUDGET_S, rounds=10), strict=True):
                attempt.median_us = median
        return min(finalists, key=lambda a: a.median_us)

    def describe(self, best: Attempt, attempts: list[Attempt]) -> None:
        """Fill the report for ``best``, of ``attempts`` that passed."""
        report = self._report
        for attempt in attempts:
            status = "kept" if attempt is best else "slower"
            reason = "" if attempt is best else f"{attempt.median_us / best.median_us:.2f} times the kept one"
            median_ms = attempt.median_us / 1e3 if attempt.candidate.is_here else None
            self._note(attempt.candidate, status, reason, attempt.build_s, attempt.parity.relative_error, median_ms)
        report.backend = best.candidate.backend
        report.precision = best.candidate.precision_text
        if self._quantized is not None:
            report.notes += self._quantized.notes if best.candidate.quantized else []
        if not best.candidate.quantized and torch.int8 in self._settings.enabled_precisions:
            report.notes.append("int8: it is enabled, and the engine kept is not in int8: see the candidates")
        if best.candidate.quantized and best.candidate.kind != INT8:
            report.notes += weight_notes(best, self._quantized.float_bytes if self._quantized is not None else 0, self._settings)
        elif best.candidate.quantized and best.candidate.backend in _FLOATING:
            report.notes.append(f"int8: {best.candidate.backend} computes it in floating point: int8's numbers, not its speed")
        report.notes += [
            f"{segment.name}: {segment.backend} runs {int8} of {count} convolutions and matrix products by int8 kernels"
            for segment in best.contents.segments
            for int8, count in [segment.artifact.metadata.get("int8_layers") or (0, 0)]
            if count
        ]
        report.notes += [
            f"{segment.name}: {segment.backend} computes in floating point, though the graph has it in int8: {reject}"
            for segment in best.contents.segments
            for reject in segment.artifact.metadata.get("int8_rejects", ())
        ]
        if not all(segment.artifact.metadata.get("exact_sums", True) for segment in best.contents.segments):
            report.notes.append(
                "int8: this CPU has neither VNNI nor AMX, without which OpenVINO's sums may saturate: build on the kind of CPU it runs on"
            )
        report.sparse_layers = describe_sparse(best) if self._settings.sparse_weights else []
        report.segments = best.segment_reports
        report.parity = best.parity
        report.notes += [best.engine.cuda_graph_note] if best.engine.cuda_graph_note else []
        # Of what was refused on the way, keep what says why the engine is as it is: nothing else where it is PyTorch's whole.
        refused = [r for r in report.rejects if r.where == "precision" or best.candidate.backend == TORCH]
        report.rejects = refused + reject_reports(best.rejects, best.candidate.backend)
        if not best.candidate.is_here:
            names = ", ".join(map(str, best.candidate.targets))
            report.notes.append(
                f"built for {names}, which this machine does not have: not run and not timed. Parity is that of the converted graph, run on the CPU."
            )
            return
        baseline = next((a for a in attempts if a.candidate.backend == TORCH), None)
        if len(best.steps) == 1:
            best.segment_reports[0].time_us = best.median_us
            best.segment_reports[0].torch_time_us = baseline.median_us if baseline else None

    def _note(
        self,
        candidate: Candidate,
        status: str,
        reason: str,
        build_s: float | None = None,
        relative_error: float | None = None,
        median_ms: float | None = None,
    ) -> None:
        self._report.candidates.append(CandidateReport(str(candidate), status, build_s, median_ms, relative_error, reason))

    def failure(self) -> Exception:
        """Why nothing is left."""
        if self._breaches:
            # Finding the operator takes a build of its own, so it is done only for the breach that fails the whole build.
            candidate, figures, tolerance = self._breaches[0]
            key = candidate.quantized
            fault = locate_fault(self._builders[key], self._programs[key], candidate, self._points[key][0], tolerance)
            fault += _INT8_HINT if key else ""
            return ParityFailed(
                f"{candidate}: {figures}. {fault} Allow a wider precision in enabled_precisions, keep the operator in PyTorch with "
                "torch_executed_ops, or set verify= to the tolerance you can accept."
            )
        if self._failures:
            return self._failures[0]
        refused = "; ".join(f"{r.backend}: {r.subject}: {r.reason}" for r in self._report.rejects)
        return BuildFailed(f"no candidate can compute in the enabled precisions here: {refused}")
