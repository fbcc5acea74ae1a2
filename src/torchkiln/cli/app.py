"""The command line: ``torchkiln compile``, ``calibrate``, ``bisect``, ``run``, ``bench``, ``inspect``, ``export``, ``merge``, ``refit``, ``doctor``.

Commands import torch only when they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import TorchkilnError, UntrustedCode
from .bench import bench
from .bisect import bisect
from .calibrate import calibrate
from .compile import compile_model
from .console import print_error, print_notes
from .debug import wants_traceback
from .doctor import doctor
from .export import export
from .inspect import inspect
from .merge import merge
from .refit import refit
from .run import run
from .settings_options import SettingsCommand


class CommandGroup(TyperGroup):
    """Turns the errors a user can act on into one message and exit code 1. Anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader went away (``torchkiln inspect m.kiln | head``): click's own business
            raise
        except (TorchkilnError, OSError) as error:
            if wants_traceback(ctx):
                raise
            print_error(error)
            if isinstance(error, UntrustedCode):
                print_notes(["on the command line, trusted=True is --trusted; 'torchkiln inspect' looks at a file without running it"])
            raise typer.Exit(1) from error


app = typer.Typer(
    name="torchkiln",
    cls=CommandGroup,
    help="Turn a PyTorch model into an inference engine: one file, checked against the model it came from.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compile", cls=SettingsCommand)(compile_model)
app.command("calibrate")(calibrate)
app.command("bisect")(bisect)
app.command("run")(run)
app.command("bench")(bench)
app.command("inspect")(inspect)
app.command("export")(export)
app.command("merge")(merge)
app.command("refit")(refit)
app.command("doctor")(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torchkiln {__version__}")
        raise typer.Exit()


@app.callback()
def _global_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Turn a PyTorch model into an inference engine: one file, checked against the model it came from."""


def main() -> None:
    """The ``torchkiln`` program."""
    app(prog_name="torchkiln")
