"""refit_engine: the weights of another state of the same model into an engine, without building it again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import torch

from .backends.contract import Candidate
from .backends.registry import get_backend
from .capture.arguments import Arguments
from .capture.capture import Model, capture
from .capture.model_device import digest_of, move_model, precision_of
from .dtypes import parse_precision, precision_name
from .engine.artifact import Artifact
from .engine.choose_target import describe_targets
from .engine.contents import EngineContents, EngineSegment
from .engine.engine import Engine
from .engine.file import read_engine_file
from .engine.report import Report
from .errors import CorruptEngineFile, ParityFailed, UserError
from .lower.convert_output_dtype import convert_output_dtype
from .lower.keep_float32 import keep_named
from .lower.pipeline import lower
from .partition.extract import Step
from .partition.partition import TORCH
from .program import Program
from .progress import progress
from .race.attempt import Builder
from .settings import CompileSettings
from .target import Target
from .verify.reference import Reference
from .verify.tolerance import precisions_in, tolerance_for
from .verify.verify import make_check_points, passed, verify

_HOW = "Build it with backend='tensorrt' and immutable_weights=False or strip_engine_weights=True, or build it again with the new weights."


def refit(engine: Engine | str | PathLike[str], model: Model, *, trusted: bool = False) -> Engine:
    """A new engine with the weights of ``model``, which differs from the engine's source model in its weights only. Nothing is built.

    The model goes through the engine's own settings again up to the ONNX graph; graph and segments must come out the same. Weights that did not
    change are left alone. The new engine is checked against ``model`` as a build is; ``engine`` stays as it is.

    An engine whose plans were built with ``strip_engine_weights`` is refitted on any machine: the weights are stored apart. One built with
    ``immutable_weights=False`` needs a GPU that runs it.

    Args:
        engine: what ``torchkiln.compile`` or ``torchkiln.load`` gave, or an engine file, which need not be for this machine; of one build.
        model: in eval mode, on any device.
        trusted: of an engine file: its plans may be loaded (see ``torchkiln.load``).

    Raises:
        UserError: the engine was not built for new weights, or the model is another.
        ParityFailed: the refitted engine is further from ``model`` than the tolerance allows.
        TargetMismatch, BuildFailed: TensorRT cannot refit the plan here.
    """
    if not isinstance(engine, Engine):
        engine = Engine(read_engine_file(engine, trusted=trusted), may_be_absent=True)
    if len(engine.held) > 1:
        raise UserError(f"refit: the engine holds several builds ({describe_targets(engine.held)}): refit files of one build each, and merge them")
    contents = engine.contents
    _check_refittable(contents)
    settings = _settings(contents)
    device = engine.device if engine.runs_here else torch.device("cpu")
    model = move_model(model, device)
    progress("capture", 0, 0)
    arguments = _arguments(contents, device, settings.seed)
    program = capture(model, arguments)
    lower(program)
    if settings.output_dtype is not None:
        convert_output_dtype(program, settings.output_dtype)
    keep_named(program.graph_module, settings.keep_float32)
    report = copy.deepcopy(contents.report)
    steps = _plan(program, settings, device, contents, report)
    progress("refit", 0, len(steps))
    segments, stand_ins = [], []
    for number, (step, segment) in enumerate(zip(steps, contents.segments, strict=True)):
        artifact, stand_in = _refit_segment(step, segment, settings, device)
        segments.append(replace(segment, artifact=artifact))
        stand_ins.append(stand_in)
        progress("refit", number + 1, len(steps))
    fresh = replace(contents, segments=tuple(segments), report=report, model_sha256=digest_of(model))
    fresh.check()
    report.notes.append("refitted: the weights are those of another state of the model")
    ready = Engine(fresh, device) if engine.runs_here else Engine(fresh, device, runners=stand_ins)
    _verify(ready, model, arguments, settings, report, device)
    return Engine(fresh, may_be_absent=True)


def _check_refittable(contents: EngineContents) -> None:
    fixed = [
        f"{s.name} ({s.backend})"
        for s in contents.segments
        if s.backend != TORCH and not (s.backend == "tensorrt" and s.artifact.metadata.get("refittable") is True)
    ]
    if fixed:
        raise UserError(f"refit: engine {contents.report.model}: {', '.join(fixed)} cannot take new weights. {_HOW}")
    if any(s.precision.startswith("int8") for s in contents.segments):
        raise UserError(
            f"refit: engine {contents.report.model}: its scales belong to the weights it was built with: build it again with the new ones"
        )


def _settings(contents: EngineContents) -> CompileSettings:
    """The settings the engine was built with. Raises CorruptEngineFile: they may come from a file."""
    try:
        return CompileSettings.from_json(contents.report.settings)
    except (TypeError, ValueError, RuntimeError) as error:  # what values of a wrong type make of the checks; UserError is a ValueError
        raise CorruptEngineFile(f"engine {contents.report.model}: the settings it was built with do not make sense: {error}") from error


def _arguments(contents: EngineContents, device: torch.device, seed: int) -> Arguments:
    tensors = [spec.random(seed=seed + position, device=device) for position, spec in enumerate(contents.inputs)]
    args, kwargs = contents.args_structure.unflatten(tensors)
    return Arguments(tuple(args), dict(kwargs), contents.args_structure, contents.inputs)


def _plan(program: Program, settings: CompileSettings, device: torch.device, contents: EngineContents, report: Report) -> list[Step]:
    """The model's segments, which must be the engine's. Raises UserError."""
    precision = next((s.precision for s in contents.segments if s.backend != TORCH), "fp32")
    backend = next((s.backend for s in contents.segments if s.backend != TORCH), TORCH)
    targets = tuple(Target(name, device if device.type == "cuda" else None) for name in contents.targets)
    candidate = Candidate(backend, parse_precision(precision), targets=targets)
    _, steps = Builder(program, settings, device, report).plan(candidate)
    expected, found = [s.backend for s in contents.segments], [s.backend for s in steps]
    if expected != found or program.output_names != contents.output_names:
        raise UserError(f"refit: the model is not the one the engine was built from: its segments are {found}, the engine's {expected}. {_HOW}")
    return steps


def _refit_segment(step: Step, segment: EngineSegment, settings: CompileSettings, device: torch.device) -> tuple[Artifact, Any]:
    """The segment's artifact with the new weights, and what stands in for it where it cannot run."""
    if segment.backend == TORCH:
        torch_backend = get_backend(TORCH)
        artifact = torch_backend.build(step.segment, Candidate(TORCH, torch.float32), settings)
        if artifact.payload != segment.artifact.payload:
            raise UserError(f"refit: {segment.name}: the model is not the one the engine was built from: its PyTorch operators differ. {_HOW}")
        return artifact, torch_backend.load(artifact, device, settings.num_threads)
    from .backends.tensorrt.convert import convert_segment
    from .backends.tensorrt.onnx_check import make_stand_in
    from .backends.tensorrt.refit import refit_plan

    metadata = segment.artifact.metadata
    graph = convert_segment(step.segment, parse_precision(segment.precision), all_weights=True)
    if graph.sha256 != metadata.get("graph_sha256"):
        raise UserError(f"refit: {segment.name}: the model is not the one the engine was built from: its graph differs. {_HOW}")
    digests = graph.weight_digests()
    changed = _changed(digests, metadata.get("weights_sha256"))
    metadata = {**metadata, "weights_sha256": digests}
    stand_in = make_stand_in(graph, settings.num_threads)
    tensors = {**segment.artifact.tensors, **graph.constants}
    if metadata.get("weightless") is True:
        tensors |= {name: graph.weights[name] for name in changed}
        return replace(segment.artifact, tensors=tensors, metadata=metadata, stand_in=stand_in), stand_in
    artifact = refit_plan(segment.artifact, {name: graph.weights[name] for name in changed}, device)
    return replace(artifact, tensors=tensors, metadata=metadata, stand_in=stand_in), stand_in


def _changed(digests: Mapping[str, str], before: Any) -> list[str]:
    known = before if isinstance(before, dict) else {}
    return [name for name, digest in digests.items() if known.get(name) != digest]


def _verify(ready: Engine, model: Model, arguments: Arguments, settings: CompileSettings, report: Report, device: torch.device) -> None:
    precisions = precisions_in([parse_precision(s.precision) for s in ready.contents.segments], precision_of(model), settings.output_dtype)
    tolerance = tolerance_for(settings.verify, precisions, device)
    if tolerance is None:
        return
    points = make_check_points(Reference(model, settings.verify_dtype), arguments, settings.seed)
    report.parity = verify(ready, points, settings.verify_dtype, tolerance)
    if not passed(report.parity):
        names = ", ".join(sorted({precision_name(p) for p in precisions}))
        raise ParityFailed(
            f"refit: relative error {report.parity.relative_error:.3g} against the new model (tolerance {tolerance:.3g} for {names}): "
            "build the engine again with the new weights"
        )
