"""merge: several engine files of one model, built for different targets, as one file."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath

from ..errors import CorruptEngineFile, UserError
from .contents import EngineContents, check_together
from .file import read_engine_file, write_engine_file


def merge(paths: Sequence[str | PathLike[str]], output: str | PathLike[str]) -> tuple[str, ...]:
    """Write what the engine files ``paths`` hold to ``output``, which may be one of them; the names of its targets.

    Nothing is run, so native code is copied whether or not it could run here. Weights that several targets read are stored once.

    Raises:
        UserError: fewer than two files, engines of other weights, that take other inputs or give other outputs, or one target twice.
        EngineFileError: a file that is damaged or of a newer schema.
    """
    if len(paths) < 2:
        raise UserError(f"merge: expected two engine files or more, got {len(paths)}")
    held: list[EngineContents] = []
    for path in paths:
        held += read_engine_file(path, to_copy=True)
        try:
            check_together(held)
        except CorruptEngineFile as error:
            raise UserError(f"merge: {fspath(path)} does not go with the files before it: {error}") from None
    write_engine_file(held, output)
    return tuple(name for contents in held for name in contents.targets)
