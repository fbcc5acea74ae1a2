"""replace_file: write a file so that a reader sees the old one or the new one, and a failure leaves the old one and no other."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import BinaryIO


@contextmanager
def replace_file(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A new file in the folder of ``path``, open for writing and reading, which takes its place when the block ends well. Raises OSError."""
    final = os.fspath(path)
    temporary = os.path.join(os.path.dirname(final), f".{os.path.basename(final)}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb+") as file:
            yield file
        os.replace(temporary, final)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
