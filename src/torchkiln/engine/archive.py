"""The zip archive an engine file is: stored members, read by name with every declared size checked against the file's real one.

Nothing is ever extracted, so a member's name is only compared, never used as a path.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import torch

from ..errors import CorruptEngineFile, UserError

MAX_MEMBERS = 20_000
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1 | 0x40 | 0x2000


@dataclass(frozen=True)
class Member:
    """Size in bytes and sha256 (hex) of a member, as the manifest keeps them."""

    size: int
    sha256: str


class ArchiveWriter:
    """Adds stored members, and the directory when the ``with`` ends. Dates are fixed, so equal contents give equal files."""

    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def add(self, name: str, chunks: Iterable[bytes | memoryview]) -> Member:
        """Write one member, piece by piece."""
        info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
        info.external_attr = 0o644 << 16
        digest = hashlib.sha256()
        size = 0
        with self._zip.open(info, "w", force_zip64=True) as member:
            for chunk in chunks:
                member.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        return Member(size, digest.hexdigest())

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *failure: object) -> None:
        self._zip.close()


class ArchiveReader:
    """Reads members by name. Raises CorruptEngineFile for anything an ArchiveWriter does not write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        try:
            directory = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, OverflowError, NotImplementedError, EOFError, OSError, struct.error) as error:
            # zipfile's ways to say that a directory is damaged; ValueError covers undecodable names, OSError negative offsets.
            raise CorruptEngineFile(f"not an engine file, or cut short: {error}") from None
        if len(directory) > MAX_MEMBERS:
            raise CorruptEngineFile(f"expected at most {MAX_MEMBERS} members, got {len(directory)}")
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in directory:
            self._check(info)
            self._members[info.filename] = info
        declared = sum(info.file_size for info in directory)
        if declared > self._size:
            raise CorruptEngineFile(f"members declare {declared} bytes in a file of {self._size}")

    @property
    def names(self) -> set[str]:
        return set(self._members)

    def size(self, name: str) -> int:
        """Size of a member in bytes."""
        return self._info(name).file_size

    def read(self, name: str, max_size: int | None = None) -> bytes:
        """A member's bytes."""
        size = self.size(name)
        if max_size is not None and size > max_size:
            raise CorruptEngineFile(f"{name}: expected at most {max_size} bytes, got {size}")
        self._seek(name)
        data = self._file.read(size)
        if len(data) != size:
            raise CorruptEngineFile(f"{name}: expected {size} bytes, got {len(data)}: the file is cut short")
        return data

    def read_tensor(self, name: str) -> torch.Tensor:
        """A member's bytes as a flat uint8 tensor: read straight into its memory."""
        size = self.size(name)
        buffer = torch.empty(size, dtype=torch.uint8)
        view = buffer.numpy().data
        self._seek(name)
        done = 0
        while done < size:
            count = self._file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise CorruptEngineFile(f"{name}: expected {size} bytes, got {done}: the file is cut short")
            done += count
        return buffer

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise CorruptEngineFile(f"{name}: the member is missing")
        return self._members[name]

    def _check(self, info: zipfile.ZipInfo) -> None:
        name = info.orig_filename
        parts = name.split("/")
        if name in self._members:
            raise CorruptEngineFile(f"{name!r:.200}: the member is there twice")
        if name != info.filename or not name.isprintable() or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
            raise CorruptEngineFile(f"{name!r:.200}: expected a plain relative member name")
        if info.flag_bits & _ENCRYPTED:
            raise CorruptEngineFile(f"{name}: expected a plain member, got an encrypted one")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CorruptEngineFile(f"{name}: expected a stored member, got compression method {info.compress_type}")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise CorruptEngineFile(f"{name}: expected a plain file, got mode {info.external_attr >> 16:o}")
        if not 0 <= info.header_offset <= self._size - info.file_size:
            raise CorruptEngineFile(f"{name}: declares {info.file_size} bytes at {info.header_offset} in a file of {self._size}")

    def _seek(self, name: str) -> None:
        """Go to a member's data, which its local header must agree about."""
        info = self._info(name)
        self._file.seek(info.header_offset)
        header = self._file.read(_LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size:
            raise CorruptEngineFile(f"{name}: its header is cut short")
        signature, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        if signature != b"PK\x03\x04" or flags & _ENCRYPTED or method != zipfile.ZIP_STORED or self._file.read(name_size) != name.encode("utf-8"):
            raise CorruptEngineFile(f"{name}: its header does not agree with the archive's directory")
        self._file.seek(extra_size, os.SEEK_CUR)


@contextmanager
def open_archive(path: str) -> Iterator[ArchiveReader]:
    """Raises UserError when there is no readable file at ``path``, CorruptEngineFile when it is no archive."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (the with below closes it; only opening may fail as a user's mistake)
    except OSError as error:
        raise UserError(f"{path}: cannot open the engine file: {error.strerror}") from error
    with file:
        yield ArchiveReader(file)
