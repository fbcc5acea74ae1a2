"""``torchkiln run m.kiln``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .compile import Json, Shapes
from .console import check_writable, print_json, print_notes, stdout, watch
from .debug import Debug

TRUSTED_HELP = "Load native code the file holds. It runs with your rights: only for files whose origin you trust."
Trusted = Annotated[bool, typer.Option("--trusted", help=TRUSTED_HELP)]
Device = Annotated[
    str | None, typer.Option("--device", help="Where to run: cpu, cuda, cuda:1. Default: the GPU if the engine holds something for it, else the CPU.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")]


def run(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file (.kiln).", exists=True, dir_okay=False)],
    shape: Shapes = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=FILE.npy", help="An input's values; the name may be left out when there is one."),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Draw the inputs that have no --input at random (also when none has one).")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random inputs.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.npz", help="Keep the outputs.")] = None,
    iterations: Annotated[int, typer.Option("--iterations", "-n", min=1, help="Calls to time, after one that is not timed.")] = 10,
    device: Device = None,
    threads: Threads = None,
    trusted: Trusted = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run an engine file once or more: the outputs in figures, and the latency."""
    if output is not None:
        check_writable(output)
    import torchkiln

    from .engine_call import draw_inputs, output_arrays, output_summary, time_calls
    from .shapes import parse_inputs

    with watch(f"running {engine.name}"):
        ready = torchkiln.load(engine, device=device, num_threads=threads, trusted=trusted)
        tensors, notes = draw_inputs(ready, inputs or (), parse_inputs(shape or ()), random=random, seed=seed)
        outputs, latency_ms = time_calls(ready, tensors, iterations)
    arrays, widened = output_arrays(ready, outputs)
    notes += widened
    if output is not None:
        _save(output, arrays)
    summary = output_summary(ready, outputs)
    if as_json:
        described = [
            {"name": i.name, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for i, t in zip(ready.inputs, tensors, strict=True)
        ]
        print_json(
            {
                "engine": str(engine),
                "device": str(ready.device),
                "target_note": ready.target_note,
                "inputs": described,
                "outputs": summary,
                "iterations": iterations,
                "latency_ms": latency_ms,
                "notes": notes,
            }
        )
        return
    print_notes(notes)
    _show(summary, latency_ms, iterations, f"{ready.device} ({ready.target_note})")


def _save(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    with path.open("wb") as file:  # an open file, since np.savez would add .npz to another suffix
        np.savez(file, **arrays)


def _show(summary: list[dict[str, Any]], latency_ms: dict[str, float], iterations: int, device: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("output", "shape", "dtype", "min", "max", "mean", "std", "not finite")
    for row in summary:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        figures = ["" if row[k] is None else f"{row[k]:.5g}" for k in ("min", "max", "mean", "std")]
        table.add_row(Text(row["name"]), shape, row["dtype"], *figures, str(row["not_finite"]))
    console = stdout()
    console.print(table)
    figures = [f"{name} {latency_ms[name]:.3f} ms" for name in ("min", "median", "mean", "max")]
    console.print(f"latency on {device}, {iterations} calls: {', '.join(figures)}", highlight=False)
