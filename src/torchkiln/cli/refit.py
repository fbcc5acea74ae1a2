"""``torchkiln refit m.kiln MODEL -o new.kiln``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .compile import MODEL_HELP, Json, Weights
from .console import check_writable, print_json, print_notes, size_text, stdout, watch
from .debug import Debug
from .run import Trusted


def refit(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file built with --refittable or --strip-engine-weights.", exists=True)],
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The model with the new weights: {MODEL_HELP}")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The engine file to write; may be ENGINE.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of random weights.")] = 0,
    weights: Weights = None,
    trusted: Trusted = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Put the weights of another state of the same model into an engine, without building it again."""
    check_writable(output)
    import torchkiln

    from ..capture.sources import load_model

    with watch(f"refitting {engine.name}"):
        loaded = load_model(model, seed=seed, weights=weights)
        refitted = torchkiln.refit(engine, loaded.model, trusted=trusted)
        refitted.save(output)
    print_notes(loaded.notes)
    size, parity = output.stat().st_size, refitted.report().parity
    if as_json:
        print_json({"engine": str(output), "size_bytes": size, "model": loaded.name, "report": refitted.report().as_json()})
        return
    figure = f", relative error {parity.relative_error:.1e}" if parity.relative_error is not None else ""
    stdout().print(f"wrote {output} ({size_text(size)}{figure})", markup=False, highlight=False, soft_wrap=True)
