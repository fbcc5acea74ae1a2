"""``torchkiln export m.kiln --format pt2|plan -o FILE`` and ``torchkiln export MODEL --format onnx -o m.onnx``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .compile import MODEL_HELP, Json, MaxShapes, MinShapes, OptShapes, Shapes, Weights
from .console import check_writable, print_json, print_notes, size_text, stdout, watch
from .debug import Debug

#: Format -> the option names that mean something for it, besides --output, --format, --json and --debug.
FORMATS: dict[str, tuple[str, ...]] = {
    "pt2": ("target",),
    "plan": ("target", "segment"),
    "onnx": ("shape", "min_shape", "opt_shape", "max_shape", "precision", "opset", "weights", "seed"),
}
FORMAT_HELP = "Of an engine: pt2, an AOTInductor package for C++, or plan, the TensorRT plan for TensorRT's own tools. Of a MODEL: onnx."
PRECISION_HELP = "onnx: what the graph computes in: fp32 (default), fp16 or bf16."
OPSET_HELP = "onnx: the version of ONNX's operators. Default: the exporter's choice."


def _known_format(value: str) -> str:
    if value not in FORMATS:
        raise typer.BadParameter(f"expected one of {', '.join(FORMATS)}, got {value!r}")
    return value


def export(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="ENGINE|MODEL", help=f"An engine file (.kiln); for --format onnx a MODEL: {MODEL_HELP}")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    to_format: Annotated[str, typer.Option("--format", metavar="FORMAT", help=FORMAT_HELP, callback=_known_format)] = "pt2",
    target: Annotated[str | None, typer.Option("--target", help="Which of the engine file's targets, as sm_89, when it has several.")] = None,
    segment: Annotated[str | None, typer.Option("--segment", help="plan: which segment, when the engine has several.")] = None,
    shape: Shapes = None,
    min_shape: MinShapes = None,
    opt_shape: OptShapes = None,
    max_shape: MaxShapes = None,
    precision: Annotated[str | None, typer.Option("--precision", help=PRECISION_HELP)] = None,
    opset: Annotated[int | None, typer.Option("--opset", help=OPSET_HELP, min=1)] = None,
    weights: Weights = None,
    seed: Annotated[int | None, typer.Option("--seed", help="onnx: seed of random weights and of the check's inputs. Default: 0.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write an engine, or a model, as a file that other programs load."""
    for name, value in ctx.params.items():
        if value not in (None, [], ()) and name not in (*FORMATS[to_format], "source", "output", "to_format", "as_json", "debug"):
            raise typer.BadParameter(f"--{name.replace('_', '-')} means nothing for --format {to_format}")
    check_writable(output)
    if to_format == "onnx":
        shapes = tuple(values or () for values in (shape, min_shape, opt_shape, max_shape))
        facts, summary, notes = _export_onnx(source, output, shapes, precision or "fp32", opset, weights, seed or 0)
    else:
        engine = _engine_file(source, to_format)
        facts, summary, notes = _export_plan(engine, output, target, segment) if to_format == "plan" else _export_package(engine, output, target)
    print_notes(notes)
    if as_json:
        print_json({"file": str(output), "format": to_format, **facts, "notes": notes})
        return
    line = f"wrote {output} ({size_text(facts['size_bytes'])}, {summary})"
    stdout().print(line, markup=False, highlight=False, soft_wrap=True)


def _engine_file(source: str, to_format: str) -> Path:
    path = Path(source)
    if path.suffix.lower() != ".kiln":
        raise typer.BadParameter(f"--format {to_format} takes an engine file (.kiln), got {source!r}: compile it first (a MODEL: --format onnx)")
    if not path.is_file():
        raise typer.BadParameter(f"{source}: no such file")
    return path


def _export_package(engine: Path, output: Path, target: str | None) -> tuple[dict[str, Any], str, list[str]]:
    from ..backends.inductor.export_package import export_package

    with watch(f"exporting {engine.name}"):
        export_package(engine, output, target)
    return {"size_bytes": output.stat().st_size}, "pt2", []


def _export_plan(engine: Path, output: Path, target: str | None, segment: str | None) -> tuple[dict[str, Any], str, list[str]]:
    from ..backends.tensorrt.export_plan import export_plan

    with watch(f"exporting {engine.name}"):
        plan = export_plan(engine, output, target, segment)
    facts = asdict(plan)
    notes = facts.pop("notes")
    return facts, f"plan of {plan.library} {plan.version} for {', '.join(plan.targets)}, {plan.precision}", notes


def _export_onnx(
    source: str, output: Path, shapes: tuple[Any, ...], precision: str, opset: int | None, weights: str | None, seed: int
) -> tuple[dict[str, Any], str, list[str]]:
    if Path(source).suffix.lower() == ".kiln":
        raise typer.BadParameter(
            f"{source}: an engine holds no ONNX graph: give the MODEL it was built from, as torchkiln export MODEL --format onnx -o {output}"
        )
    import torch

    from ..backends.onnx_file import write_onnx_file
    from ..capture.arguments import read_arguments
    from ..capture.exported_program import default_arguments
    from ..capture.sources import load_model
    from ..dtypes import parse_precision
    from .model_inputs import choose_inputs
    from .shapes import parse_inputs

    compute = parse_precision(precision)
    given = parse_inputs(*shapes)
    with watch(f"exporting {source}"):
        loaded = load_model(source, seed=seed, weights=weights)
        inputs, kwarg_inputs = choose_inputs(loaded, given)
        args: Any = inputs
        kwargs: Any = kwarg_inputs
        if inputs is None:
            args, kwargs = default_arguments(loaded.model)  # type: ignore[arg-type]  # only an ExportedProgram has no inputs here
        arguments = read_arguments(args, kwargs or None, torch.device("cpu"), seed)
        file = write_onnx_file(loaded.model, arguments, output, precision=compute, opset=opset, seed=seed)
    facts = {
        "size_bytes": file.size_bytes,
        "files": [str(path) for path in file.paths],
        "model": loaded.name,
        "opset": file.opset,
        "precision": file.precision,
        "inputs": file.inputs,
        "outputs": file.outputs,
        "relative_error": file.relative_error,
        "checked_at": file.checked_at,
    }
    apart = f", weights in {file.paths[1].name}" if len(file.paths) > 1 else ""
    checked = f"relative error {file.relative_error:.1e} under ONNX Runtime at {', '.join(file.checked_at)}"
    return facts, f"opset {file.opset}, {file.precision}, {checked}{apart}", loaded.notes + file.notes
