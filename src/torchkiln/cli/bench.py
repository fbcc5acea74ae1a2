"""``torchkiln bench MODEL...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .compile import MaxShapes, MinShapes, OptShapes, Shapes, Weights
from .console import check_writable, print_notes, stdout, watch
from .debug import Debug
from .run import Threads, Trusted
from .settings_options import comma_list

if TYPE_CHECKING:
    from ..bench.request import BenchmarkModel
    from ..inputs import Input

MODELS_HELP = "What to measure: any MODEL that 'compile' takes, or engine files (.kiln)."
DEVICE_HELP = "Where to measure: cpu, cuda, cuda:1. Default: the CPU; for an engine file, where it was built for."
TF32_HELP = "On CUDA, let every runner and the engine compute products of fp32 in TF32, or not. Default: torch's own switches."
PEERS_HELP = "all, seed (eager, traced, scripted), none, or names joined by commas."


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODELS_HELP)],
    shape: Shapes = None,
    min_shape: MinShapes = None,
    opt_shape: OptShapes = None,
    max_shape: MaxShapes = None,
    precision: Annotated[str, typer.Option("--precision", help="Precisions to measure at, joined by commas: fp32,bf16,fp16,int8.")] = "fp32",
    peers: Annotated[str, typer.Option("--peers", help=PEERS_HELP)] = "all",
    backend: Annotated[str, typer.Option("--backend", help="The engine's backend.")] = "auto",
    optimization_level: Annotated[int | None, typer.Option("--optimization-level", min=0, max=5, help="How hard the builder tries.")] = None,
    sweep_resolution: Annotated[str | None, typer.Option("--sweep-resolution", help="Measure at each height and width, as 160,320,640.")] = None,
    min_time: Annotated[float, typer.Option("--min-time", help="Seconds to record of each runner, at least.")] = 2.0,
    rounds: Annotated[int, typer.Option("--rounds", help="How often each runner is visited.")] = 5,
    pause: Annotated[float, typer.Option("--pause", help="Seconds of silence before each visit, in which thread pools go to sleep.")] = 0.05,
    max_build: Annotated[float, typer.Option("--max-build", help="Seconds a build may take; the row of a longer one says timeout.")] = 300.0,
    clock: Annotated[str, typer.Option("--clock", help="host (call to finished result) or events (CUDA events: device time alone).")] = "host",
    transfers: Annotated[bool, typer.Option("--transfers", help="On CUDA, count the copies to and from the device.")] = False,
    tf32: Annotated[bool | None, typer.Option("--tf32/--no-tf32", help=TF32_HELP)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="DIR", help="Write Markdown tables and charts.")] = None,
    weights: Weights = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of random weights, inputs and the order of the runners.")] = 0,
    device: Annotated[str | None, typer.Option("--device", help=DEVICE_HELP)] = None,
    threads: Threads = None,
    trusted: Trusted = False,
    debug: Debug = False,
) -> None:
    """Measure the engine against PyTorch and other runtimes, side by side, with the error of each."""
    if json_file is not None:
        check_writable(json_file)
    if report is not None and report.exists() and not report.is_dir():
        raise typer.BadParameter(f"{report} is a file: expected a folder", param_hint="--report")
    resolutions = _resolutions(sweep_resolution)

    from .. import bench as benchmark
    from ..bench.charts import require_matplotlib
    from ..bench.request import BenchmarkRequest
    from ..dtypes import ENABLED_PRECISIONS
    from .shapes import parse_inputs

    if report is not None:
        require_matplotlib()  # minutes of measuring must not end with a missing package
    given = parse_inputs(shape or (), min_shape or (), opt_shape or (), max_shape or ())
    names = comma_list([precision])
    for name in names:
        if name not in ENABLED_PRECISIONS:
            raise typer.BadParameter(f"unknown precision {name!r}: expected one of {', '.join(ENABLED_PRECISIONS)}", param_hint="--precision")
    with watch("loading models"):
        entries = [_entry(m, given, seed=seed, weights=weights, device=device, threads=threads, trusted=trusted) for m in models]
    for entry in entries:
        print_notes(entry.notes)
    request = BenchmarkRequest(
        models=entries,
        precisions=[ENABLED_PRECISIONS[name] for name in names],
        device=device,
        peers=comma_list([peers]),
        engine_options={"backend": backend, **({} if optimization_level is None else {"optimization_level": optimization_level})},
        min_time_s=min_time,
        max_time_s=max(20.0, min_time),
        rounds=rounds,
        pause_s=pause,
        max_build_s=max_build,
        transfers=transfers,
        tf32=tf32,
        clock=clock,
        sweep_resolution=resolutions,
        num_threads=threads,
        seed=seed,
        progress=True,
    )
    result = benchmark.run_benchmark(request)
    benchmark.print_table(result, stdout())
    if json_file is not None:
        benchmark.write_json(result, json_file)
    if report is not None:
        benchmark.write_report(result, report)


def _entry(
    source: str, given: list[Input], *, seed: int, weights: str | None, device: str | None, threads: int | None, trusted: bool
) -> BenchmarkModel:
    from torch.export import ExportedProgram

    from ..bench.request import BenchmarkModel
    from ..capture.sources import load_model
    from ..errors import UserError
    from .model_inputs import choose_inputs, on_device, own_inputs

    if source.endswith(".kiln"):
        import torchkiln

        from ..inputs import Input
        from .engine_call import shapes_by_name

        engine = torchkiln.load(source, device=device, num_threads=threads, trusted=trusted)
        paths = engine.contents.args_structure.leaf_paths()
        if paths != [f"args[{n}]" for n in range(len(paths))]:
            raise UserError(f"{source}: the benchmark passes tensors by position; this engine is called with {', '.join(paths)}")
        shapes = shapes_by_name(engine, given)
        inputs = [
            Input(shapes.get(i.name, i.opt_shape), dtype=i.dtype, any_float=i.any_float, name=i.name, tensor_domain=i.tensor_domain)
            for i in engine.inputs
        ]
        return BenchmarkModel(Path(source).name, None, inputs, engine, ["an engine file: there is no source model to compare with"])
    loaded = load_model(source, seed=seed, weights=weights)
    positional, kwarg_inputs = choose_inputs(loaded, given)
    if kwarg_inputs:
        raise UserError(f"{source}: the benchmark passes inputs by position: give shapes for the inputs before {next(iter(kwarg_inputs))!r} too")
    model = on_device(loaded.model, device)
    if isinstance(model, ExportedProgram):
        return BenchmarkModel(loaded.name, model.module(), positional or own_inputs(model), notes=loaded.notes)
    assert positional is not None  # choose_inputs raises for other models
    return BenchmarkModel(loaded.name, model, positional, notes=loaded.notes)


def _resolutions(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        return [int(part) for part in comma_list([text])]
    except ValueError:
        raise typer.BadParameter(f"expected whole numbers joined by commas, as 160,320,640, got {text!r}", param_hint="--sweep-resolution") from None
