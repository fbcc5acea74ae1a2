"""export_package: the AOTInductor package of an engine, for programs that load it without Python (docs/cpp.md)."""

from __future__ import annotations

import os
from os import PathLike

from ...engine.choose_target import pick_target
from ...engine.contents import EngineContents
from ...engine.engine import Engine
from ...engine.file import read_engine_file
from ...errors import UserError
from ...replace_file import replace_file

_HOW = "Build the engine with backend='inductor', require_full_compilation=True."


def export_package(engine: Engine | EngineContents | str | PathLike[str], path: str | PathLike[str], target: str | None = None) -> None:
    """Write the package of an engine that is one ``inductor`` segment to ``path``, atomically.

    The package takes the engine's flat inputs in order (``engine.inputs``), contiguous and on its device, and returns the flat outputs
    (``engine.output_names``). It runs where the engine runs: same torch minor version, kind of CPU and GPU.

    Args:
        engine: an Engine, its contents, or an engine file. Nothing of it is run.
        path: the file to write; its name ends in ``.pt2``.
        target: which of an engine file's targets; may be left out when it has one.

    Raises:
        UserError: the engine is not one inductor segment, or the file cannot be written.
    """
    path = os.fspath(path)
    if not path.endswith(".pt2"):
        raise UserError(f"export: {path}: expected a file name that ends in .pt2, by which torch knows a package")
    payload = _package_of(_contents_of(engine, target))
    try:
        with replace_file(path) as file:
            file.write(payload)
    except OSError as error:
        raise UserError(f"export: {path}: cannot be written: {error.strerror}") from error


def _contents_of(engine: Engine | EngineContents | str | PathLike[str], target: str | None) -> EngineContents:
    if isinstance(engine, Engine):
        return pick_target(engine.held, target)
    if isinstance(engine, EngineContents):
        return engine

    return read_engine_file(engine, to_copy=True, choose=lambda held: [pick_target(held, target)])[0]


def _package_of(contents: EngineContents) -> bytes:
    where = f"export: engine {contents.report.model}"
    if len(contents.segments) != 1 or contents.segments[0].backend != "inductor":
        found = ", ".join(f"{s.name} ({s.backend})" for s in contents.segments) or "none"
        raise UserError(f"{where}: a package holds one inductor segment, this engine has: {found}. {_HOW}")
    segment = contents.segments[0]
    if segment.inputs != tuple(range(len(contents.inputs))) or segment.outputs != contents.output_slots:
        # An input nothing reads, an input that is returned as it is, or one output twice: the engine sees to them, outside the segment.
        raise UserError(
            f"{where}: its segment takes inputs {list(segment.inputs)} of {len(contents.inputs)} and gives values {list(segment.outputs)} "
            f"for outputs {list(contents.output_slots)}: a package alone would not be the model. "
            "Take unused inputs, and outputs that are given twice or passed on, out of the model."
        )
    return segment.artifact.payload
