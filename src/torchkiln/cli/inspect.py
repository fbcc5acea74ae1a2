"""``torchkiln inspect m.kiln``: what an engine file holds, from its manifest alone; with --steps, what each step of a cuda segment costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .compile import Json
from .console import print_json, size_text, stdout, watch
from .debug import Debug
from .run import Trusted

if TYPE_CHECKING:
    from ..backends.cuda.step_table import Row, StepTable

Layers = Annotated[
    bool, typer.Option("--layers", help="List every layer of segments that have a layer table (tensorrt): its type, precision and shape.")
]
STEPS_HELP = "List every step of cuda segments: what runs it, how long it takes (measured now with --trusted on a GPU that fits, else by the tuner)."
Steps = Annotated[bool, typer.Option("--steps", help=STEPS_HELP)]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="--steps: for which batch size, where there are several. Default: the opt.")]


def inspect(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file (.kiln).", exists=True, dir_okay=False)],
    layers: Layers = False,
    steps: Steps = False,
    batch: Batch = None,
    trusted: Trusted = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what an engine file holds, target by target, without loading native code or running anything (but for --steps --trusted)."""
    if not steps and (batch is not None or trusted):
        raise typer.BadParameter(f"{'--trusted' if batch is None else '--batch'} means nothing without --steps")
    with watch(f"reading {engine.name}"):
        facts = engine_facts(engine)
        tables = _step_tables(engine, batch, trusted) if steps else []
    if as_json:
        print_json({**facts, "steps": list(map(_table_facts, tables))} if steps else facts)
        return
    if not steps or layers:
        _show(facts, layers)
    for table in tables:
        _show_steps(table)


def _step_tables(path: Path, batch: int | None, trusted: bool) -> list[StepTable]:
    from ..backends.cuda.step_table import step_tables
    from ..engine.file import read_engine_file

    # Read as data: what runs code, and only with --trusted, is the measuring.
    return step_tables(read_engine_file(path, to_copy=True), batch, trusted)


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


def _table_facts(table: StepTable) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(table), "total_us": table.total_us}


def _show_steps(table: StepTable) -> None:
    from rich.table import Table
    from rich.text import Text

    of_batch = "" if table.batch is None else f", batch {table.batch} (built for {', '.join(map(str, table.batch_sizes))})"
    _line(f"\nsteps of {table.segment} for {', '.join(table.targets)}{of_batch}")
    _line(f"times: {table.times_note}")
    if table.roofline is None:
        _line(f"no % of roofline: {table.roofline_note}")
    else:
        rates = ", ".join(f"{rate / 1e12:.1f} TFLOP/s {name}" for name, rate in table.roofline.flops_per_s.items())
        _line(f"roofline, measured on this GPU: {table.roofline.bytes_per_s / 1e9:.0f} GB/s, {rates}")
    shown = Table("step", *(["stream"] if table.streams > 1 else []), "op", "tactic", "shape", "dtype")
    for name in ("us", "GB/s", "TFLOP/s", *(["% of roofline"] if table.roofline else []), "% of total"):
        shown.add_column(name, justify="right")
    shown.add_column("label")
    for row in table.rows:
        shown.add_row(*map(Text, _cells(row, table.roofline is not None, table.streams > 1)))
    console = stdout()
    console.print(shown)
    _show_totals(table)
    if table.rejects:
        rejects = Table("not fused, or left to torch", "why")
        for where, why in table.rejects:
            rejects.add_row(Text(where), Text(why))
        console.print(rejects)


def _cells(row: Row, with_roofline: bool, with_streams: bool) -> list[str]:
    config = ", ".join(f"{name}={value}" for name, value in row.config.items())
    first, last = row.steps[0], row.steps[-1]
    steps = str(first) if first == last else f"{first}-{last}" if last - first + 1 == len(row.steps) else ",".join(map(str, row.steps))
    figures = [_figure(row.median_us, 1, 2), _figure(row.bytes_per_s, 1e-9, 0), _figure(row.flops_per_s or None, 1e-12, 2)]
    if with_roofline:
        figures.append(_figure(row.roofline_share, 100, 0))
    figures.append(_figure(row.total_share, 100, 1))
    shape = "x".join(map(str, row.shape)) or "scalar"
    streams = [",".join(map(str, row.streams))] if with_streams else []
    return [steps, *streams, row.op, f"{row.tactic} ({config})" if config else row.tactic, shape, row.dtype, *figures, row.label]


def _figure(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _show_totals(table: StepTable) -> None:
    unknown = sum(row.median_us is None for row in table.rows)
    without = f", without {unknown} operations that were not measured" if unknown and table.total_us is not None else ""
    _line(f"total: {'not measured' if table.total_us is None else f'{table.total_us:.1f} us, one step after the other{without}'}")
    share = f" ({100 * table.arena_bytes / table.tensor_bytes:.0f} %)" if table.tensor_bytes else ""
    _line(f"arena: {size_text(table.arena_bytes)} for temporaries of {size_text(table.tensor_bytes)} together{share}")
    _line(f"{sum(table.tactics.values())} steps: {', '.join(f'{count} {tactic}' for tactic, count in table.tactics.items())}")
    if table.stream_times_us:
        tried = ", ".join(f"{us:.1f} us on {count}" for count, us in table.stream_times_us)
        _line(f"streams: {table.streams}; the whole plan when it was built: {tried}")
    left = [f"{row.op} ({row.label})" for row in table.left_to_torch]
    _line(f"left to torch: {', '.join(left) or 'nothing'}")
