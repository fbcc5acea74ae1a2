"""``torchkiln compile MODEL -o m.kiln``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..capture.model_forms import FORMS
from .console import check_writable, print_json, print_notes, size_text, stdout, watch
from .settings_options import read_settings

MODEL_HELP = f"{FORMS}."
SHAPE_HELP = "Shape of one input, as 1x3x224x224; with a name and dtype, as ids:1x128@int64. Once for each input."

Shapes = Annotated[list[str] | None, typer.Option("--shape", help=SHAPE_HELP, metavar="SHAPE")]
MinShapes = Annotated[list[str] | None, typer.Option("--min-shape", help="Smallest shape of one input.", metavar="SHAPE")]
OptShapes = Annotated[list[str] | None, typer.Option("--opt-shape", help="Shape of that input to tune for.", metavar="SHAPE")]
MaxShapes = Annotated[list[str] | None, typer.Option("--max-shape", help="Largest shape of that input.", metavar="SHAPE")]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="Pretrained weights of a torchvision or timm model: DEFAULT or a name. Default: random."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def compile_model(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    shape: Shapes = None,
    min_shape: MinShapes = None,
    opt_shape: OptShapes = None,
    max_shape: MaxShapes = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The engine file to write.")] = None,
    weights: Weights = None,
    frontier: Annotated[
        Path | None, typer.Option("--frontier", metavar="FILE", help="--precision auto: draw time against error into this file (.png, .svg, .pdf).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile a model into an engine file, and check it against the model."""
    settings_values: dict[str, Any] = ctx.obj
    if output is None and not settings_values["dryrun"]:
        raise typer.BadParameter("--output/-o is needed: the engine file to write (or --dryrun to write nothing)")
    if output is not None:
        check_writable(output)
    settings = read_settings(settings_values)
    if frontier is not None:
        if settings.precision is None or settings.dryrun:
            raise typer.BadParameter("--frontier is what --precision auto finds: add that, or leave it out")
        check_writable(frontier)
        from ..engine.frontier_chart import check_chart_path

        check_chart_path(frontier)

    import torchkiln

    from ..capture.sources import load_model
    from ..engine.engine import Engine
    from ..engine.report import Report
    from ..settings import declared_options
    from .model_inputs import choose_inputs, on_device
    from .shapes import parse_inputs

    given = parse_inputs(shape or (), min_shape or (), opt_shape or (), max_shape or ())
    with watch(f"compiling {model}"):
        loaded = load_model(model, seed=settings.seed, weights=weights)
        inputs, kwarg_inputs = choose_inputs(loaded, given)
        options = {d.name: getattr(settings, d.name) for d in declared_options()}
        result = torchkiln.compile(on_device(loaded.model, settings.device), inputs, kwarg_inputs=kwarg_inputs or None, **options)
        reports = [result] if isinstance(result, Report) else result.reports()
        for report in reports:
            report.model = loaded.name  # says more than the class's name, and is kept in the file
        if isinstance(result, Engine) and output is not None:
            result.save(output)
        if isinstance(result, Engine) and frontier is not None and reports[0].frontier is not None:
            reports[0].frontier.plot(frontier)
    written: dict[str, Any] = {}
    if isinstance(result, Engine) and output is not None:
        written = {"engine": str(output), "size_bytes": output.stat().st_size}
    print_notes(loaded.notes)
    if as_json:
        build_s = sum(report.build_s for report in reports)
        print_json({**written, "model": loaded.name, "notes": loaded.notes, "build_s": build_s, "reports": [report.as_json() for report in reports]})
        return
    console = stdout()
    for report in reports:
        console.print(str(report), markup=False, highlight=False, soft_wrap=True)
    if isinstance(result, Engine) and written:
        held = ", ".join(result.targets)
        console.print(f"wrote {output} ({size_text(written['size_bytes'])}) for {held}", markup=False, highlight=False, soft_wrap=True)
