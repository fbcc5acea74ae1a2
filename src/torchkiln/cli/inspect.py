"""``torchkiln inspect m.kiln``: what an engine file holds, from its manifest alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .compile import Json
from .console import print_json, size_text, stdout, watch
from .debug import Debug


def inspect(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file (.kiln).", exists=True, dir_okay=False)],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what an engine file holds, without loading native code or running anything."""
    with watch(f"reading {engine.name}"):
        facts = engine_facts(engine)
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def engine_facts(path: Path) -> dict[str, Any]:
    """What the manifest of an engine file says, as JSON values. Raises UserError and EngineFileError."""
    from ..engine.file import DATA_BACKENDS, payload_member, read_manifest, tensors_member
    from ..engine.manifest import decode_contents

    manifest = read_manifest(path)
    contents = decode_contents(manifest)  # checks every field
    sizes = {name: member["size"] for name, member in manifest["members"].items()}
    segments = [
        {
            "name": s.name,
            "backend": s.backend,
            "precision": s.precision,
            "native_code": s.artifact.native_code or s.backend not in DATA_BACKENDS,
            "payload_bytes": sizes.get(payload_member(s.name), 0),
            "tensor_bytes": sizes.get(tensors_member(s.name), 0),
        }
        for s in contents.segments
    ]
    return {
        "engine": str(path),
        "size_bytes": path.stat().st_size,
        "native_code": any(s["native_code"] for s in segments),
        **{name: manifest[name] for name in ("schema", "torchkiln", "target", "versions", "inputs")},
        "outputs": list(contents.output_names),
        "segments": segments,
        "report": contents.report.as_json(),
    }


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..engine.report import Report

    console, target = stdout(), facts["target"]
    console.print(
        f"{facts['engine']}: {size_text(facts['size_bytes'])}, schema {facts['schema']}, made by torchkiln {facts['torchkiln']} "
        f"for {target['device']} on {target['system']} {target['machine']}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    trust = "native code: yes; it loads only with --trusted (trusted=True)" if facts["native_code"] else "native code: none"
    console.print(Text(trust, style="yellow" if facts["native_code"] else ""))

    inputs = Table("input", "dtype", "min", "opt", "max")
    for spec in facts["inputs"]:
        inputs.add_row(
            Text(spec["name"]), spec["dtype"], *("x".join(map(str, spec[f"{bound}_shape"])) or "scalar" for bound in ("min", "opt", "max"))
        )
    console.print(inputs)
    console.print(f"outputs: {', '.join(facts['outputs'])}", markup=False, highlight=False)

    segments = Table("segment", "backend", "precision", "payload", "tensors", "native code")
    for s in facts["segments"]:
        segments.add_row(
            s["name"], s["backend"], s["precision"], size_text(s["payload_bytes"]), size_text(s["tensor_bytes"]), "yes" if s["native_code"] else "no"
        )
    console.print(segments)
    console.print(str(Report.from_json(facts["report"])), markup=False, highlight=False, soft_wrap=True)
