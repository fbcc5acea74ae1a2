"""``torchkiln calibrate MODEL --data FOLDER --cache-file calib.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .compile import MODEL_HELP, Shapes, Weights
from .console import check_writable, print_notes, stdout, watch
from .debug import Debug
from .settings_options import comma_list

DATA_HELP = "A folder of .npy files or images, looked through with its subfolders."
NUMBERS_HELP = "images: one number, or one for each channel, joined by commas: (x - mean) / std is taken of pixels in 0..1."


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help=DATA_HELP, exists=True, file_okay=False)],
    cache_file: Annotated[Path, typer.Option("--cache-file", metavar="FILE", help="The calibration cache to write (JSON).")],
    algorithm: Annotated[str, typer.Option("--algorithm", help="entropy, max, percentile or mse.")] = "entropy",
    percentile: Annotated[float, typer.Option("--percentile", help="percentile: how much of the values is kept, in percent.")] = 99.99,
    shape: Shapes = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Samples in a batch. Default: as the shape says.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Files to read at most, spread evenly over the names.")] = None,
    mean: Annotated[str, typer.Option("--mean", help=f"Of {NUMBERS_HELP}")] = "0",
    std: Annotated[str, typer.Option("--std", help=f"Of {NUMBERS_HELP}")] = "1",
    stem: Annotated[bool, typer.Option("--stem", help="Quantize layers that read the model's input too.")] = False,
    head: Annotated[bool, typer.Option("--head", help="Quantize layers that give the model's output too.")] = False,
    depthwise: Annotated[bool, typer.Option("--depthwise", help="Quantize depthwise convolutions too.")] = False,
    residuals: Annotated[bool, typer.Option("--residuals/--no-residuals", help="Quantize what is added to a convolution's result.")] = True,
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Layers to keep in floating point, as 'layer4.*'. Any number of times.")] = None,
    weights: Weights = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of random weights.")] = 0,
    device: Annotated[str | None, typer.Option("--device", help="Where the model runs: cpu, cuda. Default: the CPU.")] = None,
    debug: Debug = False,
) -> None:
    """Find the ranges that int8 needs, by running a model over data, and keep them in a file for 'torchkiln compile --calibration-cache'."""
    check_writable(cache_file)
    numbers = {name: _numbers(text, f"--{name}") for name, text in (("mean", mean), ("std", std))}

    from ..capture.sources import load_model
    from ..compiler import calibrate as calibrate_program
    from ..errors import UserError
    from ..inputs import Input
    from ..quantize.calibrator import DataLoaderCalibrator
    from ..quantize.folder_data import FolderData
    from ..quantize.options import QuantizeOptions
    from .model_inputs import choose_inputs, on_device, own_inputs
    from .shapes import parse_inputs

    with watch(f"calibrating {model}"):
        loaded = load_model(model, seed=seed, weights=weights)
        inputs, kwarg_inputs = choose_inputs(loaded, parse_inputs(shape or (), (), (), ()))
        given = [*(inputs if inputs is not None else own_inputs(loaded.model)), *kwarg_inputs.values()]  # type: ignore[arg-type]
        specs = [spec if isinstance(spec, Input) else Input.of(spec) for spec in given]
        if len(specs) != 1 or not specs[0].opt_shape:
            raise UserError(f"{model}: a folder holds samples of one input, this model takes {len(specs)}: use torchkiln.ptq.DataLoaderCalibrator")
        (spec,) = specs
        if batch_size is not None:
            spec = Input((batch_size, *spec.opt_shape[1:]), dtype=spec.dtype, any_float=spec.any_float, name=spec.name)
        batches = FolderData(data, spec, batch_size=spec.opt_shape[0], limit=limit, mean=numbers["mean"], std=numbers["std"])
        options = QuantizeOptions(stem=stem, head=head, depthwise=depthwise, residuals=residuals, skip=tuple(skip or ()))
        calibrator = DataLoaderCalibrator(batches, algorithm=algorithm, percentile=percentile, cache_file=cache_file, options=options)
        positional, named = ([], {next(iter(kwarg_inputs)): spec}) if kwarg_inputs else ([spec], {})
        found = calibrate_program(on_device(loaded.model, device), positional, calibrator, kwarg_inputs=named)
    print_notes(loaded.notes)
    text = f"wrote {cache_file}: {len(found.tensors)} tensors, by {found.algorithm} over {found.samples} samples in {found.batches} batches"
    stdout().print(text, markup=False, highlight=False, soft_wrap=True)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in comma_list([text])]
    except ValueError:
        raise typer.BadParameter(f"expected numbers joined by commas, as 0.485,0.456,0.406, got {text!r}", param_hint=option) from None
