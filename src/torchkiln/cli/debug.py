"""The ``--debug`` option of the commands: whether an error shows its traceback."""

from __future__ import annotations

from typing import Annotated

import typer

from ..log import log_level

_KEY = "torchkiln.debug"


def remember_debug(ctx: typer.Context, wanted: bool) -> bool:
    """Keep the choice where the program's outermost part finds it (``meta`` is shared by a command and its group)."""
    ctx.meta[_KEY] = wanted
    return wanted


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=remember_debug, is_eager=True)]


def wants_traceback(ctx: typer.Context) -> bool:
    """Whether the user asked for more than the message: ``--debug`` or ``TORCHKILN_LOG``."""
    return bool(ctx.meta.get(_KEY)) or log_level() > 0
