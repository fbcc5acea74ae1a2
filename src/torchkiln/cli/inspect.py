"""``torchkiln inspect m.kiln``: what an engine file holds, from its manifest alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from .compile import Json
from .console import print_json, size_text, stdout, watch
from .debug import Debug

Layers = Annotated[
    bool, typer.Option("--layers", help="List every layer of segments that have a layer table (tensorrt): its type, precision and shape.")
]


def inspect(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file (.kiln).", exists=True, dir_okay=False)],
    layers: Layers = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what an engine file holds, target by target, without loading native code or running anything."""
    with watch(f"reading {engine.name}"):
        facts = engine_facts(engine)
    if as_json:
        print_json(facts)
    else:
        _show(facts, layers)


def engine_facts(path: Path) -> dict[str, Any]:
    """What the manifest of an engine file says, as JSON values. Raises UserError and EngineFileError."""
    from ..engine.file import read_manifest
    from ..engine.manifest import decode_manifest

    manifest = read_manifest(path)
    held = decode_manifest(manifest)  # checks every field
    sizes = {name: member["size"] for name, member in manifest["members"].items()}
    targets = [_target_facts(index, contents, sizes) for index, contents in enumerate(held)]
    return {
        "engine": str(path),
        "size_bytes": path.stat().st_size,
        "native_code": any(target["native_code"] for target in targets),
        **{name: manifest[name] for name in ("schema", "torchkiln")},
        "inputs": manifest["targets"][0]["inputs"],
        "outputs": list(held[0].output_names),
        "targets": targets,
    }


def _target_facts(index: int, contents: Any, sizes: dict[str, int]) -> dict[str, Any]:
    from ..engine.file import DATA_BACKENDS, payload_member, tensors_member

    segments = [
        {
            "name": s.name,
            "backend": s.backend,
            "precision": s.precision,
            "native_code": s.artifact.native_code or s.backend not in DATA_BACKENDS,
            "payload_bytes": sizes.get(payload_member(index, s.name), 0),
            "tensor_bytes": sizes.get(tensors_member(index, s.name), 0),
            "onnx_error": error if type(error := s.artifact.metadata.get("onnx_error")) is float else None,
            "layers": _layers(s.artifact.metadata.get("layers", []), s.name),
        }
        for s in contents.segments
    ]
    built_on = contents.built_on
    return {
        "names": list(contents.targets),
        "device": contents.device,
        "built_on": {"system": built_on.system, "machine": built_on.machine, "torchkiln": built_on.torchkiln, "versions": built_on.versions},
        "native_code": any(s["native_code"] for s in segments),
        "size_bytes": sum(s["payload_bytes"] + s["tensor_bytes"] for s in segments),
        "segments": segments,
        "report": contents.report.as_json(),
    }


def _layers(table: Any, segment: str) -> list[dict[str, Any]]:
    """A segment's layer table, checked. Raises CorruptEngineFile."""
    from ..errors import CorruptEngineFile

    def fits(layer: Any) -> bool:
        if not isinstance(layer, dict) or not all(type(layer.get(key)) is str for key in ("name", "type", "dtype")):
            return False
        return type(layer.get("shape")) is list and all(type(size) is int for size in layer["shape"])

    if not isinstance(table, list) or not all(map(fits, table)):
        raise CorruptEngineFile(f"segment {segment}: layers: expected objects with name, type, dtype and shape, got {table!r:.200}")
    return table


def _show(facts: dict[str, Any], layers: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    console, targets = stdout(), facts["targets"]
    _line(f"{facts['engine']}: {size_text(facts['size_bytes'])}, schema {facts['schema']}, written by torchkiln {facts['torchkiln']}")
    trust = "native code: yes; it loads only with --trusted (trusted=True)" if facts["native_code"] else "native code: none"
    console.print(Text(trust, style="yellow" if facts["native_code"] else ""))

    inputs = Table("input", "dtype", "min", "opt", "max")
    for spec in facts["inputs"]:
        inputs.add_row(
            Text(spec["name"]), spec["dtype"], *("x".join(map(str, spec[f"{bound}_shape"])) or "scalar" for bound in ("min", "opt", "max"))
        )
    console.print(inputs)
    _line(f"outputs: {', '.join(facts['outputs'])}")

    table = Table("target", "backend", "precision", "segments", "size", "native code", "built on")
    for target in targets:
        report, built_on = target["report"], target["built_on"]
        native = "yes" if target["native_code"] else "no"
        where = f"{built_on['system']} {built_on['machine']}"
        row = (", ".join(target["names"]), report["backend"], report["precision"], str(len(target["segments"])), size_text(target["size_bytes"]))
        table.add_row(*map(Text, (*row, native, where)))
    console.print(table)
    for target in targets:
        _show_target(target, layers)


def _show_target(target: dict[str, Any], layers: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..engine.report import Report

    _line(f"\ntarget {', '.join(target['names'])}")
    segments = Table("segment", "backend", "precision", "payload", "tensors", "ONNX error", "layers")
    for s in target["segments"]:
        types = Counter(layer["dtype"] for layer in s["layers"])
        counts = ", ".join(f"{count} {dtype}" for dtype, count in types.most_common())
        error = "-" if s["onnx_error"] is None else f"{s['onnx_error']:.1e}"
        segments.add_row(s["name"], s["backend"], s["precision"], size_text(s["payload_bytes"]), size_text(s["tensor_bytes"]), error, counts)
    console = stdout()
    console.print(segments)
    for s in target["segments"] if layers else ():
        if s["layers"]:
            table = Table("layer", "type", "precision", "shape", title=f"layers of {s['name']}", title_justify="left")
            for layer in s["layers"]:
                table.add_row(*(Text(str(layer[key])) for key in ("name", "type", "dtype")), "x".join(map(str, layer["shape"])))
            console.print(table)
    _line(str(Report.from_json(target["report"])))


def _line(text: str) -> None:
    stdout().print(text, markup=False, highlight=False, soft_wrap=True)
