"""export_plan: the bare TensorRT plan of an engine file, for TensorRT's own tools (trtexec, polygraphy, a C++ program)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from ...engine.artifact import Artifact
from ...engine.choose_target import pick_target
from ...engine.contents import EngineContents, EngineSegment
from ...engine.file import read_engine_file
from ...errors import CorruptEngineFile, UserError
from ...replace_file import replace_file
from ..call_plan import CallPlan


@dataclass
class ExportedPlan:
    """``library``, ``version``: what loads the plan. ``targets``: the GPUs it is for. ``inputs``, ``outputs``: as the build wrote them down.

    ``notes``: in what the plan alone is not the model.
    """

    segment: str
    library: str
    version: str
    targets: list[str]
    precision: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    size_bytes: int
    notes: list[str] = field(default_factory=list)


def export_plan(engine: str | PathLike[str], path: str | PathLike[str], target: str | None = None, segment: str | None = None) -> ExportedPlan:
    """Write the plan of one tensorrt segment of the engine file to ``path``, atomically. Nothing of it is run, and no GPU is needed.

    Args:
        target: which of the file's targets, as "sm_89"; may be left out when it has one.
        segment: which segment, by its name; may be left out when the whole model is one.

    Raises:
        UserError: no such target or segment, the segment is no plan, several segments and none named, or the file cannot be written.
        CorruptEngineFile, UnsupportedSchema: the engine file cannot be read.
    """
    contents = read_engine_file(engine, choose=lambda held: [pick_target(held, target)], to_copy=True)[0]
    chosen = _pick_segment(contents, segment)
    artifact = chosen.artifact
    metadata = artifact.metadata
    exported = ExportedPlan(
        segment=chosen.name,
        library=str(metadata.get("library")),
        version=str(metadata.get("version")),
        targets=list(contents.targets),
        precision=chosen.precision,
        inputs=_ports(artifact, "inputs"),
        outputs=_ports(artifact, "outputs"),
        size_bytes=len(artifact.payload),
        notes=_notes(contents, chosen),
    )
    _write(path, artifact.payload)
    return exported


def _pick_segment(contents: EngineContents, name: str | None) -> EngineSegment:
    where = f"export: engine {contents.report.model} for {', '.join(contents.targets)}"
    listed = ", ".join(f"{s.name} ({s.backend})" for s in contents.segments) or "none"
    if name is not None:
        found = [s for s in contents.segments if s.name == name]
        if not found:
            raise UserError(f"{where}: it has no segment {name!r}: it has {listed}")
        chosen = found[0]
    elif len(contents.segments) == 1:
        chosen = contents.segments[0]
    else:
        plans = [s.name for s in contents.segments if s.backend == "tensorrt"]
        hint = f"name one with --segment {plans[0]}" if plans else "none of them is a plan: build it with --backend tensorrt"
        raise UserError(f"{where}: a plan is one segment, and this engine has {len(contents.segments)}: {listed}; {hint}")
    if chosen.backend != "tensorrt":
        raise UserError(f"{where}: {chosen.name} is run by {chosen.backend}, not by tensorrt: only a TensorRT segment is a plan. Segments: {listed}")
    return chosen


def _ports(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    value = artifact.metadata.get(name)
    if not isinstance(value, list):
        raise CorruptEngineFile(f"tensorrt segment: {name}: expected a list, got {value!r}")
    return value


def _notes(contents: EngineContents, segment: EngineSegment) -> list[str]:
    notes = []
    if len(contents.segments) > 1:
        notes.append(f"{segment.name} is one of {len(contents.segments)} segments: the plan is a part of the model")
    plan = CallPlan.from_json(segment.artifact.metadata.get("call_plan"))
    unused = len(contents.inputs) - len(plan.used_inputs) if len(contents.segments) == 1 else 0
    if unused:
        notes.append(f"{unused} of the model's inputs are not read by the plan and are left out of it")
    if any(source != "result" for source, _ in plan.outputs):
        notes.append("some outputs are inputs or constants, which the engine gives outside of the plan")
    if segment.artifact.metadata.get("weightless"):
        notes.append("the plan has no weights: refit it before it runs")
    return notes


def _write(path: str | PathLike[str], payload: bytes) -> None:
    final = os.fspath(path)
    try:
        with replace_file(final) as file:
            file.write(payload)
    except OSError as error:
        raise UserError(f"export: {final}: cannot be written: {error.strerror}") from error
