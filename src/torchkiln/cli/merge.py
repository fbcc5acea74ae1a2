"""``torchkiln merge cpu.kiln gpu.kiln -o all.kiln``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .compile import Json
from .console import check_writable, print_json, size_text, stdout, watch
from .debug import Debug


def merge(
    engines: Annotated[
        list[Path], typer.Argument(metavar="ENGINE...", help="Engine files of one model, for different targets.", exists=True, dir_okay=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The engine file to write; may be one of ENGINE.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Put engines of one model for different targets into one file; load then picks the best for the machine."""
    check_writable(output)
    from ..engine.merge import merge as merge_files

    with watch(f"merging {len(engines)} engines"):
        targets = merge_files(engines, output)
    size = output.stat().st_size
    if as_json:
        print_json({"engine": str(output), "size_bytes": size, "targets": list(targets)})
        return
    stdout().print(f"wrote {output} ({size_text(size)}) for {', '.join(targets)}", markup=False, highlight=False, soft_wrap=True)
