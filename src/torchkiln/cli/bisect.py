"""``torchkiln bisect MODEL --precision fp16``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .compile import MODEL_HELP, Json, Shapes, Weights
from .console import print_json, print_notes, stdout, watch
from .debug import Debug


def bisect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    precision: Annotated[str, typer.Option("--precision", help="fp16, bf16 or int8.")] = "fp16",
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="The largest relative L2 error of the outputs. Default: the precision's, as compile has it."),
    ] = None,
    shape: Shapes = None,
    weights: Weights = None,
    calibration_cache: Annotated[
        Path | None, typer.Option("--calibration-cache", metavar="FILE", help="int8: the ranges, as 'torchkiln calibrate' writes them.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of random weights and inputs.")] = 0,
    device: Annotated[str | None, typer.Option("--device", help="Where the model runs: cpu, cuda. Default: the CPU.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Name the operators that must stay in float32 for a narrower precision to be right: the first, and a smallest set of them."""
    import torchkiln

    from ..capture.sources import load_model
    from ..quantize.calibrator import CacheCalibrator
    from .model_inputs import choose_inputs, on_device
    from .shapes import parse_inputs

    calibrator = CacheCalibrator(calibration_cache) if calibration_cache is not None else None
    with watch(f"bisecting {model}"):
        loaded = load_model(model, seed=seed, weights=weights)
        inputs, kwarg_inputs = choose_inputs(loaded, parse_inputs(shape or (), (), (), ()))
        found = torchkiln.bisect(
            on_device(loaded.model, device),
            inputs,
            precision=precision,
            tolerance=tolerance,
            kwarg_inputs=kwarg_inputs or None,
            calibrator=calibrator,
            seed=seed,
        )
    print_notes(loaded.notes)
    if as_json:
        print_json({"model": loaded.name, "notes": loaded.notes, **found.as_json()})
        return
    stdout().print(f"{loaded.name}: {found}", end="", markup=False, highlight=False, soft_wrap=True)
