"""``torchkiln export m.kiln --format pt2 -o m.pt2``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import check_writable, size_text, stdout, watch
from .debug import Debug

FORMATS = ("pt2",)


def _known_format(value: str) -> str:
    if value not in FORMATS:
        raise typer.BadParameter(f"expected one of {', '.join(FORMATS)}, got {value!r}")
    return value


def export(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file (.kiln) of one inductor segment.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The package to write.")],
    to_format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="pt2: an AOTInductor package, for C++.", callback=_known_format)
    ] = "pt2",
    debug: Debug = False,
) -> None:
    """Write an engine as a package that other programs load without Python."""
    check_writable(output)
    from ..backends.inductor.export_package import export_package

    with watch(f"exporting {engine.name}"):
        export_package(engine, output)
    stdout().print(f"wrote {output} ({size_text(output.stat().st_size)}, {to_format})", markup=False, highlight=False, soft_wrap=True)
